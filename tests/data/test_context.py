"""Context beside the prompt: read as the template takes it, or named in a note."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from cctuning import UserError
from cctuning.data import Encoder, load_rows
from cctuning.data.loading import in_schema
from tests.data.test_chat import tokenizer
from tests.data.test_encode import OPEN, bpe, encode_dataset

TOOL = {"name": "salio", "description": "d", "parameters": {"type": "object", "properties": {}}}
ALPACA = {
    "instruction": "Na kesho je?",
    "input": "",
    "output": "Kesho ni Jumanne.",
    "system": "Jibu kwa Kiswahili tu.",
    "history": [["Leo ni siku gani?", "Leo ni Jumatatu."]],
    "instruction_en": "And tomorrow?",
    "system_en": "Answer in Swahili only.",
    "lang": "sw",
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Salio langu?"},
        {"from": "function_call", "value": '{"name": "salio", "arguments": {"akaunti": 1}}'},
        {"from": "observation", "value": '{"salio": 5}'},
        {"from": "gpt", "value": "Ni 5."},
    ],
    "system": "Wewe ni msaidizi wa benki.",
    "tools": json.dumps([TOOL]),
    "conversations_en": [{"from": "human", "value": "My balance?"}],
    "lang": "sw",
}


def loaded(tmp_path, *rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    dataset, report = load_rows([str(path)])
    return dataset, [note.replace(str(path), "F") for note in report.notes]


def texts(row, name="qwen3"):
    made = tokenizer(name)
    (encoded,) = Encoder(made, chat=True).encode([row])
    labels = [token for token in encoded["labels"] if token != -100]
    return made.decode(encoded["input_ids"]), made.decode(labels), made.decode(encoded["reference_input_ids"])


def test_system_and_history_of_alpaca(tmp_path):
    dataset, notes = loaded(tmp_path, ALPACA)
    assert notes == []
    whole, _, reference = texts(dataset[0])
    turns = ["Jibu kwa Kiswahili tu.", "Leo ni siku gani?", "Leo ni Jumatatu.", "Na kesho je?", "Kesho ni Jumanne."]
    places = [whole.index(turn) for turn in turns]
    assert places == sorted(places) and whole.count("<|im_start|>") == 5
    assert "Answer in Swahili only." in reference and "And tomorrow?" in reference and "Jumatatu" not in reference


def test_tools_and_calls_of_sharegpt_are_rendered_by_the_template(tmp_path):
    dataset, notes = loaded(tmp_path, SHAREGPT)
    assert notes == []
    whole, answer, reference = texts(dataset[0])
    assert whole.index("msaidizi wa benki") < whole.index('"name": "salio"') < whole.index("Salio langu?")
    assert '<tool_call>\n{"name": "salio", "arguments": {"akaunti": 1}}' in whole
    assert '<tool_response>\n{"salio": 5}' in whole and answer.strip().endswith("Ni 5.<|im_end|>")
    assert '"name": "salio"' in reference  # the tools are the same in every language


def test_a_call_may_be_the_answer(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "salio", "arguments": "{}"}}]}
    row = {
        "messages": [{"role": "user", "content": "Salio?"}, call],
        "messages_en": [{"role": "user", "content": "?"}],
    }
    for tools in ([{"type": "function", "function": TOOL}], json.dumps([TOOL])):
        dataset, _ = loaded(tmp_path, row | {"lang": "sw", "tools": tools})
        assert dataset[0]["response"] == ""
        _, answer, _ = texts(dataset[0])
        assert answer.startswith('<tool_call>\n{"name": "salio", "arguments": {}}')


def test_a_data_set_that_is_handed_over_is_read_alike(tmp_path):
    for row in (ALPACA, SHAREGPT):
        handed = Dataset.from_list([row])
        made = tokenizer("qwen3")
        read, _ = in_schema(handed, "en", "rows", required=True)
        (encoded,) = encode_dataset(read, made, chat=True, **OPEN)[0]
        assert made.decode(encoded["input_ids"]) == texts(loaded(tmp_path, row)[0][0])[0]


@pytest.mark.parametrize(
    ("user", "assistant", "role", "content"),
    [
        ("human", "gpt", "from", "value"),
        ("user", "assistant", "from", "content"),
        ("user", "assistant", "role", "value"),
        ("human", "bot", "role", "content"),
        ("user", "model", "role", "content"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_messages_by_other_names_and_as_json(tmp_path, user, assistant, role, content, as_text):
    turns = [{role: user, content: "Habari?"}, {role: assistant, content: "Njema."}]
    english = [{role: user, content: "How are you?"}]
    made = json.dumps if as_text else list  # a table may hold messages as JSON
    for name in ("messages", "conversations"):
        row = {name: made(turns), f"{name}_en": made(english), "lang": "sw"}
        (read,), _ = loaded(tmp_path, row)
        handed, _ = in_schema(Dataset.from_list([row]), "en", "rows", required=True)
        for found in (read, handed[0]):
            assert [(turn["role"], turn["content"]) for turn in found["prompt"]] == [("user", "Habari?")]
            assert [turn["content"] for turn in found["reference"]] == ["How are you?"]
            assert found["response"] == "Njema."


def test_openais_older_function_calls(tmp_path):
    call = {"role": "assistant", "content": None, "function_call": {"name": "salio", "arguments": '{"akaunti": 1}'}}
    turns = [{"role": "user", "content": "Salio?"}, call, {"role": "function", "name": "salio", "content": "5"}]
    said = {"role": "assistant", "content": "Ni 5."}
    english = [{"role": "user", "content": "My balance?"}]
    (row,), notes = loaded(tmp_path, {"messages": [*turns, said], "messages_en": english, "lang": "sw"})
    whole, _, _ = texts(row)
    assert '<tool_call>\n{"name": "salio", "arguments": {"akaunti": 1}}' in whole and notes == []
    assert "<tool_response>\n5" in whole
    (row,), _ = loaded(tmp_path, {"messages": turns[:2], "messages_en": english, "lang": "sw"})
    assert texts(row)[1].startswith('<tool_call>\n{"name": "salio"')


def test_what_is_not_read_is_named(tmp_path):
    row = {"prompt": "a", "response": "b", "prompt_en": "c", "lang": "sw", "documents": "d", "id": 1, "source": "x"}
    (note,) = loaded(tmp_path, row)[1]
    assert note.startswith("F: column not read, although its name suggests context for the prompt: documents.")
    turns = [{"role": "user", "content": "a", "images": ["x"], "id": None}, {"role": "assistant", "content": "b"}]
    messages = {"messages": turns, "messages_en": [{"role": "user", "content": "c"}], "lang": "sw"}
    assert loaded(tmp_path, messages)[1] == ["F: keys of messages that are not read: images (1)."]
    for name in ("cot", "rationale", "images", "system_prompt"):
        (note,) = loaded(tmp_path, {"prompt": "a", "response": "b", "prompt_en": "c", "lang": "sw", name: "d"})[1]
        assert f"suggests context for the prompt: {name}." in note
    english = {"prompt": "a", "response": "b", "lang": "en", "reference": "c"}
    assert any(note.startswith("F: column reference is not read") for note in loaded(tmp_path, english)[1])
    source = {"path": str(tmp_path / "rows.json"), "columns": {"reference": "reference"}}
    assert not any("not read" in note for note in load_rows([source])[1].notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": [["a"]]}, r"history\[0\]: expected a question and its answer"),
        ({"tools": "no JSON"}, "tools: expected JSON"),
        ({"tools": ["x"]}, "tools: expected a list of tools"),
        ({"system": 5}, "system: expected text"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: expected the chat template's arguments"),
    ],
)
def test_bad_context_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, ALPACA | change)


def test_context_without_a_template_is_one_line(tmp_path):
    dataset, _ = loaded(tmp_path, ALPACA)
    with pytest.raises(UserError, match="the prompt is messages and chat is off"):
        encode_dataset(dataset, bpe(), chat=False, **OPEN)


CALL = {"type": "function", "function": {"name": "salio", "arguments": {"akaunti": 1}}}
WITH_CALLS = {
    "messages": [
        {"role": "user", "content": "Salio langu?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "salio", "content": "12345"},
        {"role": "assistant", "content": "Ni 12345."},
    ],
    "tools": [{"type": "function", "function": TOOL}],
    "lang": "en",
}
PLACELESS = {
    "llama3": "tool calls and tools",
    "phi3": "tool messages and tool calls and tools",
    "qwen2_5_vl": "tool calls and tools",
    "lfm2": "tool calls",
    "deepseek_r1_distill": "tool calls and tools",
}


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss", "deepseekv3", "glm4moe", "muse_glimmer", *PLACELESS])
def test_calls_are_learned_or_named(tmp_path, name):
    """Of shipped templates some have no place for tools, and some check what follows a call."""
    (row,), _ = loaded(tmp_path, WITH_CALLS)
    made = tokenizer(name)
    encoder = Encoder(made, chat=True)
    _, answer, _ = texts(row, name)
    if name in PLACELESS:
        notes: list[str] = []
        rows = in_schema(Dataset.from_list([WITH_CALLS]), "en", "rows")[0]
        encode_dataset(rows, made, chat=True, notes=notes, **{**OPEN})
        left_out = f"the chat template leaves out their {PLACELESS[name]}"
        assert encoder.warning(row) == left_out and left_out in notes[0] and "salio" not in answer
    else:
        deepseek = ["tools"] if name == "deepseekv3" else []  # its template lists no tools
        assert (encoder.warning(row) or "") == "".join(
            f"the chat template leaves out their {part}" for part in deepseek
        )
        assert "salio" in answer and "akaunti" in answer and "12345" in answer and "langu" not in answer
        assert "<|start|>" not in answer


@pytest.mark.parametrize("name", [*PLACELESS, "gptoss"])
def test_a_call_as_the_answer_needs_a_place(tmp_path, name):
    (row,), _ = loaded(tmp_path, {**WITH_CALLS, "messages": WITH_CALLS["messages"][:2]})
    (found,) = Encoder(tokenizer(name), chat=True).encode([row])
    if name == "gptoss":
        assert "with chat_template_kwargs: {enable_thinking: true} the model itself begins" in str(found)
        (found,) = Encoder(tokenizer(name), chat=True, chat_template_kwargs={"enable_thinking": True}).encode([row])
        assert (
            tokenizer(name)
            .decode(found["input_ids"])
            .endswith('salio<|channel|>commentary json<|message|>{"akaunti": 1}<|call|>')
        )
    else:
        assert "the chat template leaves out tool calls; give another" in str(found)


def test_thinking_that_a_template_strips_is_named():
    row = {"prompt": "a", "response": "b", "thinking": "hm hm", "lang": "en"}
    for name, shown in (("qwen3", True), ("gptoss", True), ("gemma4", False), ("llama3", False)):
        encoder = Encoder(tokenizer(name), chat=True, thinking=True)
        said = "the chat template leaves out their thinking"
        assert encoder.warning(row) == (None if shown else said)
        labels = [token for token in encoder.encode_row(row)["labels"] if token != -100]
        assert ("hm hm" in encoder.tokenizer.decode(labels)) == shown
