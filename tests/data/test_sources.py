"""Readers, layouts, mixing and the account: the same rows from any file, and an error that says where."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
from pathlib import Path

import datasets
import pytest

from cctuning import UserError
from cctuning.data import Source, load_rows

ROWS = [
    {"prompt": "Mji mkuu wa Kenya?", "response": "Nairobi", "lang": "sw", "prompt_en": "The capital of Kenya?"},
    {"prompt": "法国的首都？\n请回答。", "response": "巴黎", "lang": "zh", "prompt_en": 'The "capital", of France?'},
    {"prompt": "Habari\u2028yako?", "response": None, "lang": "sw", "prompt_en": "How are you?"},
    {"prompt": "What is 2+2?", "response": "4", "lang": "en", "prompt_en": None},
]
CANON = [
    {"prompt": r["prompt"], "response": r["response"], "lang": r["lang"], "reference": r["prompt_en"], "row": i}
    for i, r in enumerate(ROWS)
]


def write(path, rows=ROWS, encoding="utf-8"):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    return str(path)


def load(path, **options):
    keywords = {k: options.pop(k) for k in ("reference_language", "seed", "require_reference") if k in options}
    return load_rows([Source(str(path), **options)], **keywords)


def plain(dataset):
    return [{k: v for k, v in row.items() if k != "origin"} for row in dataset]


def jsonl(folder):
    return write(folder / "rows.jsonl")


def bom(folder):
    return write(folder / "rows.jsonl", encoding="utf-8-sig")


def compressed(folder):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(Path(write(folder / "x.jsonl")).read_bytes()))
    return str(path)


def array(folder):
    (folder / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(folder / "rows.json")


def as_csv(folder):
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return str(folder / "rows.csv")


def parquet(folder):
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder):
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return str(folder / "saved")


def directory(folder):
    (folder / "many").mkdir()
    write(folder / "many" / "train-1.jsonl", ROWS[:2]), write(folder / "many" / "train-2.jsonl", ROWS[2:])
    write(folder / "many" / "test.jsonl")
    return str(folder / "many")


WRITERS = [jsonl, bom, compressed, array, as_csv, parquet, saved, saved_splits, directory]


@pytest.mark.parametrize("make", WRITERS, ids=lambda make: make.__name__)
def test_every_format_gives_the_same_rows(make, tmp_path):
    dataset, report = load(make(tmp_path))
    assert plain(dataset) == CANON
    assert report.rows == 4 and report.with_response == 3 and report.without_response == 1
    assert report.languages == {"sw": 2, "zh": 1, "en": 1}
    assert report.fingerprints and all(value.startswith("sha256:") for value in report.fingerprints.values())
    assert json.loads(json.dumps(report.as_dict()))["rows"] == 4


def test_hub_rows_carry_name_split_and_index(tmp_path, monkeypatch):
    calls = []

    def fetch(path, name, split):
        calls.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    dataset, report = load("me/rows", name="sw", split="validation")
    assert calls == [("me/rows", "sw", "validation")] and plain(dataset) == CANON
    assert dataset["origin"][1] == "me/rows/sw[validation]:1"
    assert next(iter(report.fingerprints.values())).startswith("datasets:")


def test_hub_failure_is_one_line(monkeypatch):
    def fetch(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'me/rows' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    with pytest.raises(
        UserError, match=r"me/rows: no such file here, and the hub gave no data set.*network"
    ) as caught:
        load("me/rows")
    assert "\n" not in str(caught.value)


def test_origin_is_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))
    assert load(tmp_path / "a.jsonl")[0]["origin"] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4"]
    assert load(as_csv(tmp_path))[0]["origin"][2] == f"{tmp_path}/rows.csv:5"  # the second record spans two lines
    assert load(array(tmp_path))[0]["origin"][1] == f"{tmp_path}/rows.json:8"
    mapped = load(tmp_path / "a.jsonl", columns={"id": "response"})[0]
    assert mapped["origin"][0] == f"{tmp_path}/a.jsonl:2 (id Nairobi)"


def test_the_result_reflects_the_file_at_every_load(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    first, before = load(path)
    write(tmp_path / "rows.jsonl", [ROWS[1]])
    second, after = load(path)
    assert len(first) == 4 and len(second) == 1 and before.fingerprints != after.fingerprints


def test_the_data_set_is_mapped_from_disk_and_survives_pickling(tmp_path):
    dataset, _ = load(jsonl(tmp_path))
    assert dataset.cache_files and plain(pickle.loads(pickle.dumps(dataset))) == CANON
    assert dataset.map(lambda row: {"n": len(row["prompt"])}, num_proc=2)["n"][3] == 12


def test_environment_variables_in_paths(tmp_path, monkeypatch):
    jsonl(tmp_path)
    monkeypatch.setenv("ROWS_HERE", str(tmp_path))
    assert len(load("$ROWS_HERE/rows.jsonl")[0]) == 4


# -- layouts ---------------------------------------------------------------------------------------------------------


def one(tmp_path, record, **options):
    write(tmp_path / "one.jsonl", [record])
    row = load(tmp_path / "one.jsonl", **{"lang": "sw", **options})[0][0]
    return row["prompt"], row["response"], row["reference"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Uwe mwema."}


def test_alpaca(tmp_path):
    record = {"instruction": "Tafsiri", "input": "paka", "output": "cat", "instruction_en": "Translate"}
    assert one(tmp_path, {**record, "input_en": "the animal"}) == (
        "Tafsiri\n\npaka",
        "cat",
        "Translate\n\nthe animal",
    )
    assert one(tmp_path, {**record, "input": "", "input_en": ""}) == ("Tafsiri", "cat", "Translate")


def test_trl_prompt_completion(tmp_path):
    assert one(tmp_path, {"prompt": "a?", "completion": "b", "prompt_en": "c?"}) == ("a?", "b", "c?")
    record = {"prompt": [user("a?")], "completion": [assistant("b")], "prompt_en": [user("c?")]}
    assert one(tmp_path, record) == ([user("a?")], "b", [user("c?")])


def test_messages_give_prompt_and_response(tmp_path):
    turns = [SYSTEM, user("moja"), assistant("sawa"), user("mbili")]
    english = [{**SYSTEM, "content": "Be good."}, user("one"), assistant("fine"), user("two")]
    record = {"messages": [*turns, assistant("tatu")], "messages_en": english}
    assert one(tmp_path, record) == (turns, "tatu", english)
    assert one(tmp_path, {**record, "messages": turns}) == (turns, None, english)


def test_the_reference_never_ends_with_an_assistant_turn(tmp_path):
    record = {"messages": [user("moja"), assistant("mbili")], "messages_en": [user("one"), assistant("two")]}
    assert one(tmp_path, record) == ([user("moja")], "mbili", [user("one")])


def test_sharegpt(tmp_path):
    def turns(*texts):
        return [{"from": who, "value": text} for who, text in zip(("system", "human", "gpt"), texts, strict=False)]

    record = {"conversations": turns("s", "moja", "mbili"), "conversations_en": turns("s", "one", "two")}
    system = {"role": "system", "content": "s"}
    assert one(tmp_path, record) == ([system, user("moja")], "mbili", [system, user("one")])


def test_content_in_text_parts(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "mo"}, {"type": "text", "text": "ja"}]}]
    assert one(tmp_path, {"messages": parts, "prompt_en": "one"})[0] == [user("moja")]


def test_messages_survive_parquet(tmp_path):
    record = {"messages": [SYSTEM, user("moja"), assistant("mbili")], "messages_en": [user("one")], "lang": "sw"}
    datasets.Dataset.from_list([record]).to_parquet(tmp_path / "m.parquet")
    row = load(tmp_path / "m.parquet")[0][0]
    assert (row["prompt"], row["response"], row["reference"]) == ([SYSTEM, user("moja")], "mbili", [user("one")])


def test_one_conversation_makes_all_rows_conversations(tmp_path):
    chat = write(tmp_path / "chat.jsonl", [{"messages": [user("a"), assistant("b")], "prompt_en": "c", "lang": "sw"}])
    dataset, _ = load_rows([write(tmp_path / "text.jsonl"), chat])
    assert dataset["prompt"][0] == [user(ROWS[0]["prompt"])] and dataset["reference"][0] == [
        user(ROWS[0]["prompt_en"])
    ]
    assert dataset["reference"][3] is None and dataset["reference"][4] == [user("c")]


def test_columns_are_mapped_by_name(tmp_path):
    record = {"swali": "a?", "muktadha": "b", "jibu": "c", "lugha": "sw", "en": "d?"}
    parts = {"prompt": "swali", "input": "muktadha", "response": "jibu", "lang": "lugha", "reference": "en"}
    assert one(tmp_path, record, columns=parts) == ("a?\n\nb", "c", "d?")


def test_a_whole_number_is_a_response(tmp_path):
    assert one(tmp_path, {"prompt": "a", "response": 72, "prompt_en": "b"})[1] == "72"


def test_another_reference_language(tmp_path):
    rows = [
        {"prompt": "Ki kapital Ayiti?", "response": "Pòtoprens", "lang": "ht", "prompt_fr": "Capitale d'Haïti ?"},
        {"prompt": "Capitale du Bénin ?", "response": "Porto-Novo", "lang": "fr"},
    ]
    write(tmp_path / "ht.jsonl", rows)
    dataset, report = load(tmp_path / "ht.jsonl", reference_language="fr")
    assert dataset["reference"] == ["Capitale d'Haïti ?", None] and report.reference_language == "fr"
    with pytest.raises(UserError, match=r"ht.jsonl:1: prompt_en: no parallel .*\(en\).*Did you mean 'prompt_fr'\?"):
        load(tmp_path / "ht.jsonl")


def test_reference_rows_once_for_each_reference(tmp_path):
    def rows(lang):
        return [
            {"prompt": f"{lang} {i}", "response": f"r{i}", "lang": lang, "prompt_en": f"q{i}?", "response_en": f"a{i}"}
            for i in range(2)
        ]

    paths = [write(tmp_path / f"{lang}.jsonl", rows(lang)) for lang in ("sw", "zh")]
    dataset, report = load_rows([Source(path, include_reference_rows=True) for path in paths])
    english = [row for row in dataset if row["lang"] == "en"]
    assert [(row["prompt"], row["response"], row["reference"]) for row in english] == [
        ("q0?", "a0", None),
        ("q1?", "a1", None),
    ]
    assert [source.reference_rows for source in report.sources] == [2, 0] and report.rows == 6
    with pytest.raises(UserError, match="include_reference_rows: no response in the reference language"):
        load(jsonl(tmp_path), include_reference_rows=True)


def test_reference_rows_from_the_dropped_assistant_turn(tmp_path):
    record = {"messages": [user("moja"), assistant("mbili")], "messages_en": [user("one"), assistant("two")]}
    write(tmp_path / "m.jsonl", [record])
    dataset, _ = load(tmp_path / "m.jsonl", lang="sw", include_reference_rows=True)
    assert dataset[1]["prompt"] == [user("one")] and dataset[1]["response"] == "two"


def test_a_file_without_responses_is_noted(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b", "prompt_en": "c", "lang": "sw"}])
    report = load(tmp_path / "a.jsonl")[1]
    assert "its 1 rows train the alignment alone (columns: prompt, answer" in report.notes[0]
    assert load(jsonl(tmp_path))[1].notes == []


# -- mixing ----------------------------------------------------------------------------------------------------------


def numbered(tmp_path, name, count):
    rows = [{"prompt": f"{name}{i}", "response": "r", "lang": name, "prompt_en": f"{name} {i}"} for i in range(count)]
    return write(tmp_path / f"{name}.jsonl", rows)


def test_weights_sample_and_repeat(tmp_path):
    sources = [Source(numbered(tmp_path, "sw", 10), weight=0.5), Source(numbered(tmp_path, "zh", 4), weight=2.5)]
    dataset, report = load_rows(sources, seed=3)
    prompts = dataset["prompt"][:]
    assert report.languages == {"sw": 5, "zh": 10} and dataset["row"] == list(range(15))
    assert len(set(prompts[:5])) == 5 and prompts[:5] == sorted(prompts[:5])  # no repeats, in file order
    assert prompts[5:13] == [f"zh{i}" for i in range(4)] * 2 and len(set(prompts[13:])) == 2
    assert report.sources[0].read == 10
    assert load_rows(sources, seed=3)[0]["prompt"][:] == prompts
    assert any(load_rows(sources, seed=other)[0]["prompt"][:] != prompts for other in range(4, 8))


def test_limit_stops_reading(tmp_path):
    path = numbered(tmp_path, "sw", 5)
    with open(path, "a") as file:
        file.write("not JSON\n")
    assert load(path, limit=5)[0]["prompt"] == [f"sw{i}" for i in range(5)]
    assert len(load(path, limit=2)[0]) == 2


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
    "leak": ({**GOOD, "response": LONG, "prompt_en": f"c? {LONG}."}, "prompt_en: the response stands in it"),
    "leak at the end": (
        {**GOOD, "response": "Paris", "prompt_en": "c? Answer: Paris."},
        "prompt_en: it ends with the",
    ),
    "role": ({"messages": [{"role": "bot", "content": "x"}], "lang": "sw"}, r"messages\[0\]: role 'bot' is not known"),
    "no turn": ({"messages": [assistant("x")], "lang": "sw"}, "messages: there is no turn before"),
    "tool call": (
        {"messages": [{**assistant("x"), "tool_calls": [{}]}], "lang": "sw"},
        r"messages\[0\]: tool calls are not supported",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}], "lang": "sw"},
        r"messages\[0\]: only parts of type text",
    ),
    "messages text": ({"messages": "x", "lang": "sw"}, "messages: expected a list of messages, found str"),
    "ambiguous": ({**GOOD, "messages": [user("a")]}, "prompt: prompt and messages could each be it"),
    "two responses": ({**GOOD, "output": "x"}, "response: response and output could each be it"),
    "assistant prompt": ({**GOOD, "prompt": [assistant("a")]}, "prompt: ends with an assistant turn"),
    "assistant reference": ({**GOOD, "prompt_en": [assistant("a")]}, "prompt_en: holds assistant turns alone"),
    "completions": ({**without("response"), "completion": [user("a")]}, "completion: expected one assistant message"),
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
    "csv cells": ("x.csv", HEAD + b"a,b,sw,c\na,b,c,sw,d\n", r"x.csv:3: line: 5 cells where the header has 4"),
}


@pytest.mark.parametrize("name, content, message", LINES.values(), ids=LINES)
def test_a_bad_line_names_file_and_line(name, content, message, tmp_path):
    path = raw(tmp_path, name, content)
    with pytest.raises(UserError, match=message):
        load(path)
    dataset, report = load(path, bad_rows="skip")
    assert len(dataset) == len(report.skipped) == 1


FILES = {
    "utf-16": ("x.jsonl", LINE.decode().encode("utf-16"), r"x.jsonl:1: the file is in UTF-16"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(LINE * 500)[:-20], r"x.jsonl.gz:\d+: cannot be read on from here"),
    "no gzip": ("x.jsonl.gz", LINE, r"x.jsonl.gz:1: cannot be read on from here"),
    "cut array": ("x.json", b"[" + LINE + b',\n{"prompt"', r"x.json:3: malformed JSON array"),
    "array comma": ("x.json", b"[" + LINE + LINE + b"]", r"x.json:1: malformed JSON array .expected a comma"),
    "quote": ("x.csv", HEAD + b'a,"b,sw,c\n', r"x.csv:2: malformed CSV"),
    "header": ("x.csv", b"a,a\n1,2\n", r"x.csv:1: expected a header line of distinct column names"),
    "no header": ("x.csv", b"", r"x.csv:1: expected a header"),
    "parquet": ("x.parquet", b"no", r"x.parquet: not a Parquet file"),
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
        ({"path": "x", "limit": 0}, "limit: expected a whole number"),
        ({"path": "x", "lang": False}, "lang: expected text, got False; put it in quotes"),
        ({"path": "x", "bad_rows": "ignore"}, "bad_rows: expected error or skip"),
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
    with pytest.raises(UserError, match="sources: none given"):
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
