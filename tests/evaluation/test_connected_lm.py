"""`ConnectedLM` against the model's own `forward` and `generate`: the same figures, in batches of uneven rows."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.errors import UserError
from cctuning.evaluation.models import ConnectedLM, Journal
from tests.conftest import shake

ADAPTIVE = {"connection": "adaptive"}
NONLINEAR = {"transform": "nonlinear"}
ASKED = [("w1 w2 w3", " w4 w5"), ("w7", " w8"), ("w9 w3 w3 w1 w6 w2", " w2 w2 w6"), ("w5 w4", " w1 w1 w1 w7")]


class Request:
    task_name = "t"

    def __init__(self, *args, doc_id=0):
        self.args, self.doc_id = args, doc_id


@pytest.fixture(scope="module")
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)


def attach(model, **options) -> ConnectedModel:
    made = ConnectedModel.attach(
        AutoModelForCausalLM.from_pretrained(model), ConnectionConfig(**{"connection": "gated", **options})
    ).eval()
    shake(made, scale=1.0)
    if options.get("connection") == "adaptive":
        size = made.adaptive.selector.in_features
        made.adaptive.set_matrix(torch.randn(size, size, generator=torch.Generator().manual_seed(4)))
    return made


def ids(tokenizer, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])


def by_generate(connected, tokenizer, context: str, answer: str, **given) -> float:
    """Log-likelihood of an answer that `generate` is made to write, from the logits it would have drawn from."""
    wanted = ids(tokenizer, answer)[0]
    prompt = ids(tokenizer, context)

    def force(tokens, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, wanted[tokens.shape[1] - prompt.shape[1]]] = 0
        return forced

    written = connected.generate(
        prompt,
        max_new_tokens=len(wanted),
        do_sample=False,
        logits_processor=[force],
        output_logits=True,
        return_dict_in_generate=True,
        **given,
    )
    assert torch.equal(written.sequences[0, prompt.shape[1] :], wanted)
    scores = torch.cat(written.logits).log_softmax(dim=-1)
    return scores.gather(1, wanted[:, None]).sum().item()


def by_forward(connected, tokenizer, context: str, answer: str) -> float:
    """The same from one forward over a row of its own, whose labels say where the answer starts."""
    prompt, wanted = ids(tokenizer, context), ids(tokenizer, answer)
    row = torch.cat([prompt, wanted], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), wanted], dim=1)
    with torch.no_grad():
        logits = connected(row, labels=labels).logits[0, prompt.shape[1] - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, wanted[0][:, None]).sum().item()


@pytest.mark.parametrize(
    "options", [ADAPTIVE, NONLINEAR, NONLINEAR | {"scope": "response"}, NONLINEAR | {"scope": "prompt_end"}], ids=str
)
def test_student_likelihoods_are_those_of_forward_and_generate(model, tokenizer, options):
    made = attach(model, **options)
    asked = [Request(*one) for one in ASKED]
    found = [value for value, _ in ConnectedLM(made, tokenizer, batch_size=3).loglikelihood(asked)]
    assert found == pytest.approx([by_generate(made, tokenizer, *one) for one in ASKED], abs=1e-5)
    assert found == pytest.approx([by_forward(made, tokenizer, *one) for one in ASKED], abs=1e-5)
    with made.disable_adapter():  # and the connection is not idle
        base = [by_forward(made, tokenizer, *one) for one in ASKED]
    assert min(abs(one - other) for one, other in zip(found, base, strict=True)) > 1e-3


@pytest.mark.parametrize("options", [ADAPTIVE, NONLINEAR], ids=str)
def test_answers_in_a_batch_are_those_of_each_prompt_alone(model, tokenizer, options):
    made = attach(model, **options)
    asked = [Request(context, {"until": [], "max_gen_toks": 5}) for context, _ in ASKED]
    expected = []
    for context, _ in ASKED:
        prompt = ids(tokenizer, context)
        written = made.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        expected.append(tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True))
    assert ConnectedLM(made, tokenizer, batch_size=3).generate_until(asked) == expected
    assert any(expected)


def test_the_reference_language_takes_no_part_in_an_adaptive_connection(model, tokenizer):
    made = attach(model, **ADAPTIVE)
    lm = ConnectedLM(made, tokenizer, batch_size=3)
    lm.in_reference_language = True
    found = [value for value, _ in lm.loglikelihood([Request(*one) for one in ASKED])]
    with made.disable_adapter():
        base = [by_forward(made, tokenizer, *one) for one in ASKED]
    assert found == pytest.approx(base, abs=1e-5)


@pytest.mark.parametrize("scope", ["all", "response", "prompt_end"])
def test_rows_do_not_touch_each_other_and_greedy_means_what_generate_writes(model, tokenizer, scope):
    made = attach(model, scope=scope)
    lm = ConnectedLM(made, tokenizer, batch_size=3)
    asked = [Request(*one) for one in ASKED]
    found = lm.loglikelihood(asked)
    for request, (value, _) in zip(asked, found, strict=True):
        assert value == pytest.approx(lm.loglikelihood([request])[0][0], abs=1e-5)
    if scope == "all":
        plain = HFLM(pretrained=made.model, tokenizer=tokenizer, batch_size=3)
        expected = [value for value, _ in plain.loglikelihood(asked, disable_tqdm=True)]
        assert [value for value, _ in found] == pytest.approx(expected, abs=1e-5)
    # Greedy decoding through `generate` writes the continuation that the scorer calls greedy.
    written = lm.generate_until([Request("w1 w2 w3", {"until": [], "max_gen_toks": 3})])[0].strip()
    assert written
    assert lm.loglikelihood([Request("w1 w2 w3", " " + written)])[0][1]


def test_one_text_in_two_languages_is_asked_twice_of_an_adaptive_connection(model, tokenizer, tmp_path):
    lm = ConnectedLM(attach(model, **ADAPTIVE), tokenizer, batch_size=3)
    journal = Journal(lm, tmp_path / "journal.jsonl", 4)
    asked = [Instance("loglikelihood", {}, ASKED[0], 0, metadata=("t", 0, 1))]
    found = []
    for lm.in_reference_language in (False, True, False):
        found.append(journal.loglikelihood(asked)[0][0])
    assert found[0] == found[2] != found[1] and journal.asked == 2


def test_an_answer_longer_than_the_model_is_told(model, tokenizer):
    lm = ConnectedLM(attach(model, **NONLINEAR), tokenizer)
    with pytest.raises(UserError, match=r"an answer of \d+ tokens exceeds the model's 512"):
        lm.loglikelihood([Request("w1", " w2" * 600)])
