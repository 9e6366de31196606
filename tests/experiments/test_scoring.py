"""One forward of prompt and candidates gives what reading each candidate by itself gives."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.real.scoring import encode, exact, likelihoods, right, written
from experiments.real.worlds import Item
from tests.experiments.conftest import LABELS, TEXT

ITEMS = [
    Item("a", TEXT[0] + "\n", LABELS, 0),
    Item("b", TEXT[4] + " and the doctor\n", ("the team won", "health", "the river"), 1),
    Item("c", TEXT[2] + "\n", LABELS, 2),
]


@pytest.fixture(scope="module")
def model(whole):
    return AutoModelForCausalLM.from_pretrained(whole).eval(), AutoTokenizer.from_pretrained(whole)


def test_as_each_by_itself(model):
    network, tokenizer = model
    encoded = encode(tokenizer, ITEMS, chat=False)
    assert max(len(answer) for _, answers in encoded for answer in answers) > 2  # else nothing is shared
    for (prompt, answers), (firsts, whole) in zip(encoded, likelihoods(network, encoded), strict=True):
        for answer, first, score in zip(answers, firsts, whole, strict=True):
            with torch.no_grad():
                logits = network(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            each = [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
            assert score == pytest.approx(sum(each), abs=1e-4)
            assert first == pytest.approx(each[0], abs=1e-4)


def test_the_likeliest_is_chosen(model):
    network, tokenizer = model
    scores = [whole for _, whole in likelihoods(network, encode(tokenizer, ITEMS, chat=False))]
    best = [max(range(3), key=one.__getitem__) for one in scores]
    flags = right(network, tokenizer, ITEMS)
    assert flags == "".join("01"[place == item.answer] for place, item in zip(best, ITEMS, strict=True))
    asked = [item._replace(answer=place) for item, place in zip(ITEMS, best, strict=True)]
    assert right(network, tokenizer, asked) == "111"


def test_written_as_each_by_itself(model):
    """Prompts of different lengths in a batch, padded on the left."""
    network, tokenizer = model
    encoded = encode(tokenizer, ITEMS, chat=False)
    assert len({len(prompt) for prompt, _ in encoded}) > 1
    alone = []
    for prompt, _ in encoded:
        ids = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids.append(network(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        text = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        alone.append(text.strip().split("\n")[0].strip())
    assert written(network, tokenizer, encoded, tokens=5) == alone


def test_written_answers_are_compared_as_names():
    items = [Item("a", "", ("Wien", "Paris"), 0), Item("b", "", ("Prag", "Rom"), 1)]
    found = exact([" wien.", "Paris"], items)
    assert found == {"exact": "10", "language": "11"}
    assert exact(["Vienna", ""], items) == {"exact": "00", "language": "00"}
