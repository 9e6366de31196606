"""What is wrong with a row, a line, a file or a source is said with its place; and the leak rule."""

from __future__ import annotations

import gzip
import json

import pytest

from cctuning import UserError
from cctuning.data import Source, load_rows
from tests.data.files import (
    as_csv,
    assistant,
    directory,
    jsonl,
    load,
    one,
    parquet,
    saved_splits,
    user,
    write,
)

# -- bad input -------------------------------------------------------------------------------------------------------

GOOD = {"prompt": "a?", "response": "b", "lang": "sw", "prompt_en": "c?"}


def without(field):
    return {key: value for key, value in GOOD.items() if key != field}


LONG = "Paris is the capital of France"
BAD = {
    "prompt empty": ({**GOOD, "prompt": " "}, "prompt: the prompt is empty"),
    "prompt null": ({**GOOD, "prompt": None}, "prompt: no value"),
    "prompt number": ({**GOOD, "prompt": 7}, "prompt: expected text, found int .7."),
    "prompt absent": ({**without("prompt"), "promt": "x"}, "prompt: no such column among .*Did you mean 'promt'"),
    "parallel null": ({**GOOD, "prompt_en": None}, r"prompt_en: no parallel of the prompt .*\(en\)"),
    "parallel absent": (without("prompt_en"), "prompt_en: no parallel .* no such column among prompt, response, lang"),
    "parallel blank": ({**GOOD, "prompt_en": "  "}, "prompt_en: the prompt is empty"),
    "parallel number": ({**GOOD, "prompt_en": 1.5}, "prompt_en: expected text, found float"),
    "response type": ({**GOOD, "response": 1.5}, "response: expected text, found float"),
    "response bool": ({**GOOD, "response": True}, "response: expected text, found bool"),
    "language": (without("lang"), "lang: no language"),
    "surrogate": ({**GOOD, "response": "\ud800"}, "response: half a surrogate pair"),
    "leak": ({**GOOD, "response": LONG, "prompt_en": f"c? {LONG}."}, "prompt_en: it contains the response"),
    "leak at the end": (
        {**GOOD, "response": "Paris", "prompt_en": "c? Answer: Paris."},
        "prompt_en: it ends with the",
    ),
    "role": ({"messages": [{"role": "me", "content": "x"}], "lang": "sw"}, r"messages\[0\]: role 'me' is not known"),
    "keys": (
        {"messages": [{"role": "user", "text": "x"}], "lang": "sw"},
        r"messages\[0\]: .* found the keys role, text",
    ),
    "no turn": ({"messages": [assistant("x")], "lang": "sw"}, "messages: there is no turn before"),
    "tool call": (
        {"messages": [{**assistant("x"), "tool_calls": [{}]}], "lang": "sw"},
        r"messages\[0\].tool_calls: expected calls with a name",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}], "lang": "sw"},
        r"messages\[0\]: only parts of type text",
    ),
    "messages text": ({"messages": "x", "lang": "sw"}, "messages: expected JSON, found 'x'"),
    "no messages": ({"messages": [], "lang": "sw"}, "messages: expected a list of messages, found none"),
    "ambiguous": ({**GOOD, "messages": [user("a")]}, "prompt: prompt and messages could both be it"),
    "two responses": ({**GOOD, "output": "x"}, "response: response and output could both be it"),
    "assistant prompt": ({**GOOD, "prompt": [assistant("a")]}, "prompt: ends with an assistant turn"),
    "assistant reference": ({**GOOD, "prompt_en": [assistant("a")]}, "prompt_en: has only assistant turns"),
    "completions": (
        {**without("response"), "completion": [user("a")]},
        "completion: expected the assistant's turn first",
    ),
}


@pytest.mark.parametrize("record, message", BAD.values(), ids=BAD)
def test_a_bad_row_names_file_line_and_field(record, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [GOOD, record, GOOD]))
    with pytest.raises(UserError, match=rf"rows.jsonl:2: {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value) and "bad_rows: skip" in str(caught.value)
    dataset, report = load(path, bad_rows="skip")
    assert len(dataset) == 2 and report.sources[0].skipped == 1
    assert report.skipped[0].origin == f"{path}:2" and report.skipped[0].field and report.skipped[0].reason


def raw(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


LINE = json.dumps(GOOD).encode() + b"\n"
HEAD = b"prompt,response,lang,prompt_en\n"
LINES = {
    "malformed": ("x.jsonl", LINE + b'{"prompt": \n', r"x.jsonl:2: line: malformed JSON"),
    "not an object": ("x.jsonl", LINE + b'"x"\n', r"x.jsonl:2: line: expected a JSON object, found str"),
    "encoding": ("x.jsonl", LINE + LINE.replace(b"a?", b"\xe9?"), r"x.jsonl:2: line: byte 0xe9 at place 13"),
    "csv encoding": (
        "x.csv",
        HEAD + b"a,b,sw,c\n\xe9,b,sw,c\n",
        r"x.csv:3: prompt: byte 0xe9 at character 1 is not UTF",
    ),
    "csv cells": ("x.csv", HEAD + b"a,b,sw,c\na,b,c,sw,d\n", r"x.csv:3: line: 5 cells, expected 4"),
}


@pytest.mark.parametrize("name, content, message", LINES.values(), ids=LINES)
def test_a_bad_line_names_file_and_line(name, content, message, tmp_path):
    path = raw(tmp_path, name, content)
    with pytest.raises(UserError, match=message):
        load(path)
    dataset, report = load(path, bad_rows="skip")
    assert len(dataset) == len(report.skipped) == 1


FILES = {
    "utf-16": ("x.jsonl", LINE.decode().encode("utf-16"), r"x.jsonl:1: the file is UTF-16"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(LINE * 500)[:-20], r"x.jsonl.gz:\d+: cannot be read from here on"),
    "no gzip": ("x.jsonl.gz", LINE, r"x.jsonl.gz:1: cannot be read from here on"),
    "cut array": ("x.json", b"[" + LINE + b',\n{"prompt"', r"x.json: malformed JSON array .*line 3"),
    "array comma": ("x.json", b"[" + LINE + LINE + b"]", r"x.json: malformed JSON array .*delimiter: line 2"),
    "quote": ("x.csv", HEAD + b'a,"b,sw,c\n', r"x.csv:2: malformed CSV"),
    "header": ("x.csv", b"a,a\n1,2\n", r"x.csv:1: expected a header line of distinct column names"),
    "no header": ("x.csv", b"", r"x.csv:1: expected a header"),
    "parquet": ("x.parquet", b"no", r"x.parquet: not a readable Parquet file"),
    "empty": ("x.jsonl", b"\n", r"x.jsonl: no row to train on: it is empty"),
    "all bad": ("x.jsonl", b"1\n2\n", r"x.jsonl: no row to train on: all 2 are bad, the first: .*x.jsonl:1: line"),
    "format": ("x.txt", LINE, r"x.txt: unknown format; expected a name ending in .jsonl"),
}


@pytest.mark.parametrize("name, content, message", FILES.values(), ids=FILES)
def test_a_bad_file_is_an_error_even_where_rows_may_be_skipped(name, content, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        load(raw(tmp_path, name, content), bad_rows="skip")
    assert "\n" not in str(caught.value)


def test_missing_files_splits_and_columns(tmp_path):
    jsonl(tmp_path)
    with pytest.raises(UserError, match=r"row.jsonl: no such file or directory. Did you mean '.*rows.jsonl'"):
        load(tmp_path / "row.jsonl")
    with pytest.raises(UserError, match=r"no split 'tset'; it has train, test. Did you mean 'test'"):
        load(saved_splits(tmp_path), split="tset")
    with pytest.raises(UserError, match=r"no file of the split 'dev' among test.jsonl, train-1.jsonl"):
        load(directory(tmp_path), split="dev")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing: no data file in this directory"):
        load(tmp_path / "nothing")
    for make in (jsonl, as_csv, parquet):
        path = make(tmp_path)
        match = "columns: response: no column 'respons' among .*Did you mean 'response'"
        with pytest.raises(UserError, match=match):
            load(path, columns={"response": "respons"}, bad_rows="skip")


def test_missing_column_of_a_table_lists_all_columns(tmp_path):
    path = raw(tmp_path, "x.csv", b"promt,extra\na,b\n")
    with pytest.raises(UserError, match=r"prompt: no such column among promt, extra. Did you mean 'promt'"):
        load(path)


def test_vanilla_keeps_rows_without_a_parallel(tmp_path):
    write(tmp_path / "a.jsonl", [without("prompt_en"), GOOD])
    dataset, _ = load(tmp_path / "a.jsonl", require_reference=False)
    assert dataset["reference"] == [None, "c?"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "x", "wieght": 2}, r"unknown key 'wieght'.*Did you mean 'weight'"),
        ({"weight": 2}, "path: missing"),
        ({"path": "x", "weight": 0}, "weight: expected a number above 0"),
        ({"path": "x", "limit": 0}, "limit: expected at least 1"),
        ({"path": "x", "lang": False}, "lang: expected text or null, got False; put it in quotes"),
        ({"path": "x", "bad_rows": "ignore"}, "bad_rows: .* is not one of error, skip"),
        ({"path": "x", "columns": {"referense": "y"}}, "unknown part 'referense'.*Did you mean 'reference'"),
        ({"path": "x", "columns": {"prompt": "y", "messages": "z"}}, "prompt and messages exclude each other"),
        (7, "expected a path or a mapping"),
    ],
)
def test_a_bad_source_names_the_key(options, message):
    with pytest.raises(UserError, match=message):
        Source.from_dict(options)


def test_a_weight_that_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"weight: 0.01 of 4 rows leaves none"):
        load(jsonl(tmp_path), weight=0.01)
    with pytest.raises(UserError, match="data: none given"):
        load_rows([])


# -- the leak rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, response, reference, leaks",
    [
        ("2+70 ni ngapi?", "72", "There are 72 hens. How many is 2+70?", False),  # among the terms, by chance
        ("2+70 ni ngapi?", "72", "How much is 2+70? 72", True),
        ("Kuku 72. 2+70 ni ngapi?", "72", "72 hens. How much is 2+70? 72", True),
        ("২+৭০ কত?", "৭২", "How much is 2+70? Answer: 72.", True),  # digits of another script
        ("A au B?", "B", "Answer with A or B", False),  # the prompt has it too
        ("Mji?", "Rio", "Which city is Rosario", False),  # no word of its own
        ("Rekebisha: she go to school", "she goes to school", "Correct: she go to school", False),
        ("Tafsiri: anaenda shuleni", "She goes to school.", "Translate: she GOES to  school.", True),
        ("Rudia: she goes to school", "she goes to school", "Repeat: she goes to school", False),
        ("a?", "!", "b!", False),
    ],
)
def test_leak(prompt, response, reference, leaks, tmp_path):
    record = {"prompt": prompt, "response": response, "prompt_en": reference}
    if leaks:
        with pytest.raises(UserError, match=r"prompt_en: .*the response"):
            one(tmp_path, record)
    else:
        one(tmp_path, record)


# -- rows without a language -----------------------------------------------------------------------------------------


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_without_language_and_reference_are_in_the_reference_language(tmp_path):
    plain = {"prompt": "a?", "response": "b"}
    file = lines(tmp_path / "plain.jsonl", [plain, plain])
    rows, report = load_rows([str(file)], reference_language="fr", require_reference=False)
    assert set(rows["lang"]) == {"fr"}
    assert any("no column lang: its rows are taken to be in French" in note for note in report.notes)
    rows, report = load_rows([f"{{path: {file}, lang: sw}}"], require_reference=False)
    assert set(rows["lang"]) == {"sw"} and not any("no column lang" in note for note in report.notes)
    mixed = [plain, {**plain, "lang": "sw"}]
    for order in (mixed, mixed[::-1]):
        with pytest.raises(UserError, match=r"no lang"):
            load_rows([str(lines(tmp_path / "mixed.jsonl", order))], require_reference=False)


def test_a_source_in_a_flag_may_be_a_mapping(tmp_path):
    file = lines(tmp_path / "qa.jsonl", [{"question": "a?", "answer": "b", "lang": "sw"}])
    rows, _ = load_rows(
        [f"{{path: {file}, columns: {{prompt: question, response: answer}}}}"], require_reference=False
    )
    assert rows[0]["prompt"] == "a?" and rows[0]["response"] == "b"
    with pytest.raises(UserError, match=r"prompt: no such column among question.*'\{path: FILE, columns: \{prompt"):
        load_rows([str(file)], require_reference=False)
    with pytest.raises(UserError, match=r"data\[0\]: expected a path, or a mapping"):
        load_rows(["{path: x"], require_reference=False)
