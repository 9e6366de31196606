"""Chat templates as models ship them (TRL's copies): where a prompt ends, what is trained, what is thinking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trl
from datasets import Dataset

from cctuning import UserError
from cctuning.data import Encoder, load_rows
from cctuning.data.chat import settle, split_thinking
from cctuning.data.loading import has_thinking, in_schema
from cctuning.serving.stop_tokens import Thoughts
from tests.data.test_encode import OPEN, bpe, encode_dataset

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Those of models for images refuse or drop plain text.
NAMES = sorted(
    path.stem
    for path in TEMPLATES.glob("*.jinja")
    if not path.stem.endswith("_training") and path.stem not in ("idefics3", "llava_next", "smolvlm")
)
SPECIAL = "<think> </think> <|message|> <|channel|> <channel|> <|end|> <|return|> <|eot|> <|eom|>"
MARKS = SPECIAL.split(" ")
PLAIN = {"prompt": "Mji mkuu wa Kenya?", "response": "Nairobi."}


def tokenizer(name: str):
    made = bpe((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    made.add_tokens(MARKS)
    return made


def trained(encoded, made) -> tuple[str, str]:
    """The prompt and what carries loss, as text."""
    labels = [token for token in encoded["labels"] if token != -100]
    return made.decode(encoded["input_ids"][: -len(labels)]), made.decode(labels)


def encode(made, row, **options):
    encoder = Encoder(made, chat=True, **options)
    (encoded,) = encoder.encode([row])
    return encoder, *trained(encoded, made)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_answer_is_trained_as_it_is_asked_for(name):
    """The answer comes first after the prompt, no block is left open, and the prompt is that of inference, also by a
    server's own rendering of the settled template."""
    made = tokenizer(name)
    encoder, prompt, answer = encode(made, PLAIN)
    assert answer.startswith("Nairobi.") and answer.count("Nairobi.") == 1
    assert prompt.count("<think>") == prompt.count("</think>") and "think>" not in answer
    assert made.decode(encoder.prompt_ids(PLAIN["prompt"])) == prompt
    made.chat_template = encoder.chat_template
    asked = [{"role": "user", "content": PLAIN["prompt"]}]
    assert made.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) == prompt
    assert settle(made).template == encoder.chat_template  # settled once and for all
    thoughts = Thoughts.of(encoder)
    assert thoughts is None or thoughts.answer(made.encode("Nairobi.", add_special_tokens=False), made) == "Nairobi."


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("apart", [True, False])
def test_thinking_is_trained_once_and_cut_from_the_answer(name, apart):
    """Given in a key of its own or in the text, where the template has a place for it."""
    made = tokenizer(name)
    row = PLAIN | ({"thinking": "Mji ni upi"} if apart else {"response": "<think>\nMji ni upi\n</think>\n\nNairobi."})
    encoder, prompt, answer = encode(made, row, thinking=True)
    if encoder.settled.ending is None:
        assert "Mji ni upi" not in answer if apart else answer.startswith("<think>\nMji ni upi\n</think>\n\nNairobi.")
        assert (encoder.warning(row) is not None) == apart
        return
    if encoder.settled.opening is None:  # Gemma 4 renders no thinking but beside tool calls
        return
    assert answer.count("Mji ni upi") == answer.count("Nairobi.") == 1
    whole = prompt + answer
    assert whole.count("<think>") == whole.count("</think>") <= 1
    thoughts = Thoughts.of(encoder)
    said = answer.removesuffix(encoder.closing).removesuffix("<eos>")
    assert thoughts.answer(made.encode(said, add_special_tokens=False), made).strip() == "Nairobi."
    cut = said[: said.index("ni upi")]
    assert thoughts.answer(made.encode(cut, add_special_tokens=False), made) == ""  # it never came to an answer


@pytest.mark.parametrize(
    ("name", "plain", "thinking"),
    [
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", "assistant\n"),
        ("deepseek_r1_distill", "<｜Assistant｜><think>\n\n</think>\n\n", "<｜Assistant｜><think>\n"),
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>", "<|start|>assistant"),
        ("glm4moe", "/nothink<|assistant|>\n<think></think>\n", "<|assistant|>"),
        ("qwen3_5_think", "assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n"),
        ("qwen2_5", "assistant\n", "assistant\n"),
    ],
)
def test_arguments_become_the_templates_own(name, plain, thinking):
    made = tokenizer(name)
    asked = [{"role": "user", "content": "x"}]
    for given, end in ((None, plain), ({"enable_thinking": True}, thinking), ({"enable_thinking": False}, plain)):
        encoder = Encoder(made, chat=True, chat_template_kwargs=given)
        assert encoder.render("x").endswith(end)
    made.chat_template = Encoder(made, chat=True).chat_template
    # a server may still turn it on, and so may a verb
    text = made.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, enable_thinking=True)
    assert text.endswith(thinking) == (text == Encoder(made, chat=True, thinking=True).render("x"))
    assert text.endswith(thinking)


def test_a_row_may_have_arguments_of_its_own():
    made = tokenizer("qwen3")
    row = PLAIN | {"arguments": {"enable_thinking": True}}
    assert encode(made, row)[1].endswith("assistant\n")


def test_a_template_that_drops_plain_text_is_refused():
    with pytest.raises(UserError, match="leaves out messages of plain text"):
        Encoder(tokenizer("smolvlm"), chat=True)
    with pytest.raises(UserError, match="not valid Jinja"):
        Encoder(bpe("{% if %}"), chat=True)


def test_answers_apart_from_their_thinking():
    assert split_thinking("<think>\na\n</think>\n\nb") == ("a", "b") == split_thinking("a</think>b")
    assert split_thinking("a <b>c</b>") == (None, "a <b>c</b>")


ROWS = [
    {
        "lang": "sw",
        "messages": [
            {"role": "user", "content": "Mbili jumlisha mbili?", "thinking": None},
            {"role": "assistant", "content": "Nne.", key: "Mbili na mbili ni nne."},
        ],
        "messages_en": [{"role": "user", "content": "What is two plus two?"}],
    }
    for key in ("thinking", "reasoning_content", "reasoning")
]


def test_thinking_of_messages_is_what_the_template_makes_of_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = tokenizer("qwen3")
    theirs = made.apply_chat_template(
        [*ROWS[1]["messages"]],
        tokenize=False,
    )
    for dataset in (load_rows([str(path)])[0], Dataset.from_list(ROWS)):
        read, _ = in_schema(dataset, "en", "rows", required=True)
        assert has_thinking(read)
        encoded, _ = encode_dataset(read, made, chat=True, thinking=True, **OPEN)
        assert {made.decode(row["input_ids"]) for row in encoded} == {theirs}
    for response, thinks in (("b", False), ("<think>x</think>b", True)):
        rows = Dataset.from_list([{"prompt": "a", "response": response, "prompt_en": "c"}])
        assert has_thinking(in_schema(rows, "en", "rows")[0]) == thinks


def test_rows_whose_thinking_has_no_place_and_special_tokens_in_text_are_notes():
    made = bpe()
    rows = [
        {"prompt": "a", "response": "b<|im_end|>c", "thinking": None, "origin": "f:1"},
        {"prompt": "<bos>a", "response": "b", "origin": "f:2"},
    ]
    rows += [
        {"prompt": "a", "response": "b", "thinking": "t", "origin": "f:3"},
        {"prompt": "a", "response": "b", "origin": "f:4"},
    ]
    notes: list[str] = []
    encode_dataset(Dataset.from_list(rows), made, chat=True, notes=notes, **OPEN)
    assert notes == [
        "1 of 4 rows (the first: f:1): '<|im_end|>', written in their text, is read as that special token",
        "1 of 4 rows (the first: f:3): the chat template leaves out their thinking",
    ]
