"""All turns of the assistant are learned, as TRL's `assistant_only_loss` does; the last prompt's end connects."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from trl.chat_template_utils import get_training_chat_template

from cctuning.connection.plan import predicting, prompt_ends, scope_mask
from cctuning.data import Encoder, load_rows
from cctuning.data.loading import in_schema
from tests.data.test_chat import tokenizer
from tests.data.test_encode import OPEN, encode_dataset

TURNS = [
    {"role": "user", "content": "Mji mkuu wa Kenya?"},
    {"role": "assistant", "content": "Nairobi."},
    {"role": "user", "content": "Na wa Uganda?"},
    {"role": "assistant", "content": "Kampala."},
    {"role": "user", "content": "Asante."},
    {"role": "assistant", "content": "Karibu."},
]
ROW = {"messages": TURNS, "messages_en": [*TURNS[:5]], "lang": "sw"}
SHIPPED = ["qwen2_5", "qwen3", "gemma", "gemma3", "llama3", "phi3", "deepseekv3", "cohere", "glm4moe", "lfm2"]


# As Mistral's, Vicuna's and Llama 2's do, they write a space between prompt and answer.
SPACED = {
    "inst": "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' "
    "else ' ' + m['content'] + eos_token }}{% endfor %}",
    "named": "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' "
    "else 'ASSISTANT: ' + m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
}


def loaded(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load_rows([str(path)])[0][0]


def encoded(made, row, **options):
    (found,) = Encoder(made, chat=True, **options).encode([row])
    return found


def runs(found, made):
    """The texts that carry loss, one after the other."""
    texts, held = [], []
    for token in [*found["labels"], -100]:
        if token != -100:
            held.append(token)
        elif held:
            texts.append(made.decode(held).strip())
            held = []
    return texts


@pytest.mark.parametrize("template", SPACED)
def test_a_space_before_an_answer_is_part_of_its_first_token(template, tmp_path):
    """The tokens are the template's own, prompts do not end with a space, and first tokens of answers are learned."""
    made = tokenizer("qwen2_5")
    made.chat_template = SPACED[template]
    found = encoded(made, loaded(tmp_path, ROW))
    native = made.apply_chat_template(TURNS, tokenize=False)
    assert found["input_ids"] == made(native, add_special_tokens=False)["input_ids"]
    assert [text.removesuffix(made.eos_token) for text in runs(found, made)] == ["Nairobi.", "Kampala.", "Karibu."]
    encoder = Encoder(made, chat=True)
    assert not encoder.settled.notes() and not encoder.render("Habari?").endswith(" ")
    start, end = found["text"]
    assert made.decode(found["input_ids"][start:end]).strip().startswith("Mji mkuu wa Kenya?")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_words_as_trls_training_templates(tmp_path, name):
    made = tokenizer(name)
    found = encoded(made, loaded(tmp_path, ROW))
    said = runs(found, made)
    assert [text.startswith(turn["content"]) for text, turn in zip(said, TURNS[1::2], strict=True)] == [True] * 3
    template = get_training_chat_template(made) or made.chat_template
    theirs = made.apply_chat_template(
        TURNS, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    trained = [token for token, mask in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if mask]
    text = "".join(made.decode(trained).split())
    for turn in said:  # some of TRL's also train a role's mark before a turn
        before, found, text = text.partition("".join(turn.removesuffix("<eos>").split()))
        assert found and not any(one["content"].split()[0] in before for one in TURNS), (turn, before)


def test_turns_that_are_not_to_be_learned(tmp_path):
    made = tokenizer("qwen2_5")
    for key in ("weight", "train"):
        turns = [TURNS[0], TURNS[1] | {key: 0 if key == "weight" else False}, *TURNS[2:]]
        assert len(runs(encoded(made, loaded(tmp_path, ROW | {"messages": turns})), made)) == 2
    # the last turns: the conversation ends with the last turn that is learned, and without one it is answer-free
    off = {"train": False}
    for last, expected in (([TURNS[5] | off], 2), ([TURNS[5] | off, TURNS[4], TURNS[5] | off], 2)):
        english = {"messages_en": [*TURNS[:3], {"role": "assistant", "content": "x"}, *TURNS[4:6]]}
        row = loaded(tmp_path, ROW | english | {"messages": [*TURNS[:5], *last]})
        assert len(runs(encoded(made, row), made)) == expected and row["response"] == "Kampala."
        assert [turn["content"] for turn in row["reference"]] == [turn["content"] for turn in TURNS[:3]]
    row = loaded(tmp_path, ROW | {"messages": [TURNS[0], TURNS[1] | off, TURNS[2], TURNS[3] | off]})
    assert row["response"] is None and row["prompt"][-1]["content"] == "Na wa Uganda?"
    row = loaded(tmp_path, ROW)
    assert runs(encoded(made, row, turns="last"), made) == ["Karibu.<|im_end|>"]
    # a prompt of messages with a response of its own (TRL's prompt and completion): the completion alone
    apart = {"prompt": TURNS[:5], "completion": TURNS[5:], "prompt_en": TURNS[:5], "lang": "sw"}
    assert runs(encoded(made, loaded(tmp_path, apart)), made) == ["Karibu.<|im_end|>"]
    # no response: nothing is learned, the alignment alone
    assert runs(encoded(made, loaded(tmp_path, ROW | {"messages": TURNS[:1]})), made) == []


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "salio", "arguments": {}}}]}
RESULT = {"role": "tool", "name": "salio", "content": "12"}
SHAREGPT = {"user": "human", "assistant": "gpt", "tool": "observation"}


def as_sharegpt(turn):
    if turn.get("tool_calls"):
        return {"from": "function_call", "value": json.dumps(turn["tool_calls"][0]["function"])}
    return {"from": SHAREGPT[turn["role"]], "value": turn["content"]}


@pytest.mark.parametrize("layout", ["messages", "conversations", "completion"])
@pytest.mark.parametrize(
    ("after", "learned", "noted"),
    [
        ([], ["Nairobi.", "Kampala."], False),
        ([TURNS[4]], ["Nairobi.", "Kampala."], True),
        ([TURNS[4], {"role": "assistant", "content": " "}], ["Nairobi.", "Kampala."], True),
        ([TURNS[4], CALL], ["Nairobi.", "Kampala.", "<tool_call>"], False),
        ([TURNS[4], CALL, RESULT], ["Nairobi.", "Kampala.", "<tool_call>"], True),
    ],
)
def test_a_conversation_is_learned_up_to_its_last_answer(tmp_path, layout, after, learned, noted):
    """TRL's `assistant_only_loss` trains the same turns of a conversation that ends with another's."""
    made = tokenizer("qwen3")
    turns = [*TURNS[:4], *after]
    english = [turn | {"content": turn["content"] and turn["content"] + "!"} for turn in turns]
    row = {"messages": turns, "messages_en": english}
    if layout == "conversations":
        row = {"conversations": [*map(as_sharegpt, turns)], "conversations_en": [*map(as_sharegpt, english)]}
    if layout == "completion":
        row = {"prompt": turns[:1], "completion": turns[1:], "prompt_en": english[:1]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**row, "lang": "sw"}) + "\n")
    dataset, report = load_rows([str(path)])
    said = runs(encoded(made, dataset[0]), made)
    assert [text.split("\n")[0].removesuffix("<|im_end|>") for text in said] == learned
    assert "Asante." not in made.decode(encoded(made, dataset[0])["input_ids"]) or after[1:2] == [CALL]
    assert len(dataset[0]["reference"]) == (len(dataset[0]["prompt"]) if layout != "completion" else 1)
    note = "1 conversations go on after their last answer; those turns are left out"
    assert [note in one for one in report.notes] == [True] * noted
    notes: list[str] = []
    (again,), _ = in_schema(Dataset.from_list([{**row, "lang": "sw"}]), "en", "rows", required=True, notes=notes)
    assert encoded(made, again) == encoded(made, dataset[0] | {"row": 0}) and len(notes) == noted


def test_a_conversation_to_be_answered_is_read_to_its_end(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TURNS[:3], "lang": "sw"}) + "\n")
    (row,), report = load_rows([str(path)], require_reference=False, to_answer=True)
    assert row["response"] is None and row["prompt"][-1]["content"] == "Na wa Uganda?" and not report.notes


def test_what_the_trainer_is_handed_is_learned_alike(tmp_path):
    """Read from a file by `load_rows`, or handed over as a data set: both go through the trainer's own reading."""
    made = tokenizer("qwen2_5")
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "salio", "arguments": "{}"}}]}
    calls = ROW | {"messages": [*TURNS[:5], call]}
    apart = {"prompt": TURNS[:5], "completion": TURNS[5:], "prompt_en": TURNS[:5], "lang": "sw"}
    for row, expected in ((ROW, 3), (calls, 3), (apart, 1)):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        for dataset in (load_rows([str(path)])[0], Dataset.from_list([row])):
            read, _ = in_schema(dataset, "en", "rows", required=True)
            (found,) = encode_dataset(read, made, chat=True, **OPEN)[0]
            assert len(runs(found, made)) == expected, runs(found, made)


def test_an_answer_of_the_same_letters_is_found_whole(tmp_path):
    made = tokenizer("qwen2_5")
    turns = [TURNS[0], {"role": "assistant", "content": TURNS[0]["content"]}, TURNS[0], TURNS[1]]
    said = runs(encoded(made, loaded(tmp_path, ROW | {"messages": turns})), made)
    assert said == [TURNS[0]["content"] + "<|im_end|>", "Nairobi.<|im_end|>"]


def test_the_connection_acts_at_the_last_prompts_end(tmp_path):
    made = tokenizer("qwen2_5")
    row = loaded(tmp_path, ROW)
    mask, ends, scopes = None, [], []
    for turns in ("all", "last"):
        labels = torch.tensor([encoded(made, row, turns=turns)["labels"]])
        mask, predict = torch.ones_like(labels), predicting(labels)
        ends.append(int(prompt_ends(mask, predict)))
        scopes.append(
            [scope_mask(scope, mask, predict).nonzero()[:, 1].tolist() for scope in ("prompt_end", "response")]
        )
    assert ends[0] == ends[1] == len(Encoder(made, chat=True).prompt_ids(row["prompt"])) - 1
    assert scopes[0] == scopes[1] and scopes[0][0] == [ends[0]]


def aligned(made, row, **options):
    """The text of prompt and reference that is aligned."""
    found = encoded(made, row, **options)
    sides = (("input_ids", "text"), ("reference_input_ids", "reference_text"))
    return [made.decode(found[ids][found[span][0] : found[span][1]]).strip() for ids, span in sides]


TOOL = {"type": "function", "function": {"name": "salio", "description": "Balance.", "parameters": {}}}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("context", [None, "system", "tools"])
def test_the_aligned_part_of_a_conversation(tmp_path, name, context):
    """Without system messages and tools, which are the same in all rows; with `last`, the last turn alone."""
    made = tokenizer(name)
    row = {"messages": TURNS, "messages_en": [{**turn, "content": turn["content"] + "!"} for turn in TURNS]}
    row |= {"lang": "sw"} | ({"tools": [TOOL]} if context == "tools" else {})
    if context == "system":
        row |= {"system": "Jibu kwa Kiswahili.", "system_en": "Answer in Swahili, and in one word only, please."}
    row = loaded(tmp_path, row)
    if (name, context) == ("gemma", "system"):
        assert "System role not supported" in str(encoded(made, row))
        return
    assert aligned(made, row, align_turns="last") == ["Asante.", "Asante.!"]
    for text, reference in (aligned(made, row), aligned(made, row, align_turns="all")):
        assert text.startswith("Mji mkuu wa Kenya?") and text.endswith("Asante.") and "Kampala." in text
        assert reference.startswith("Mji mkuu wa Kenya?!") and reference.endswith("Asante.!")


def test_the_aligned_part_of_other_prompts(tmp_path):
    made = tokenizer("qwen2_5")
    result = {"role": "tool", "name": "salio", "content": "12 shilingi"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "salio", "arguments": {}}}]}
    tools = [*TURNS[:2], TURNS[2], call, result, TURNS[3]]
    row = loaded(tmp_path, {"messages": tools, "prompt_en": "The balance?", "lang": "sw", "tools": [TOOL]})
    assert aligned(made, row, align_turns="last") == ["12 shilingi", "The balance?"]
    assert aligned(made, row)[0].startswith("Mji mkuu wa Kenya?") and aligned(made, row)[0].endswith("12 shilingi")
    one = {"prompt": "Mji mkuu?", "response": "Nairobi.", "prompt_en": "Capital?", "lang": "sw", "system": "Jibu."}
    for row in (one, {**one, "system": None}, {**one, "tools": [TOOL]}, {**one, "history": [["Habari?", "Njema."]]}):
        assert aligned(made, loaded(tmp_path, row), align_turns="last") == ["Mji mkuu?", "Capital?"]
