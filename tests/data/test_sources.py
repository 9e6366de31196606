"""Readers, layouts, mixing and the account: the same rows from any file, and an error that says where."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets
import pytest

from cctuning import UserError
from cctuning.data import Source, load_rows, row_reader
from cctuning.data.loading import in_schema
from tests.data.files import (
    CANON,
    ROWS,
    array,
    as_csv,
    assistant,
    bom,
    compressed,
    directory,
    jsonl,
    load,
    one,
    parquet,
    plain,
    saved,
    saved_splits,
    user,
    write,
)

WRITERS = [jsonl, bom, compressed, array, as_csv, parquet, saved, saved_splits, directory]


@pytest.mark.parametrize("make", WRITERS, ids=lambda make: make.__name__)
def test_every_format_gives_the_same_rows(make, tmp_path):
    dataset, report = load(make(tmp_path))
    assert plain(dataset) == CANON
    assert report.rows == 4 and report.with_response == 3 and report.without_response == 1
    assert report.languages == {"sw": 2, "zh": 1, "en": 1}
    assert report.fingerprints and all(value.startswith("sha256:") for value in report.fingerprints.values())
    assert json.loads(json.dumps(report.as_dict()))["rows"] == 4


def test_languages_named_in_themselves(tmp_path):
    row = {"prompt": "a", "response": "b", "prompt_English": "c"}
    path = write(
        tmp_path / "rows.jsonl", [row | {"lang": lang} for lang in ("Kiswahili", "français", "العربية", "中文")]
    )
    assert load_rows([path])[0]["lang"] == ["sw", "fr", "ar", "zh"]
    write(tmp_path / "rows.jsonl", [row | {"lang": "isiNdebele"}])
    with pytest.raises(UserError, match=r"rows.jsonl:1: lang: the language 'isiNdebele' is ambiguous: nd .*, nr "):
        load_rows([path])


@pytest.mark.parametrize("column", ["language", "language_code", "locale"])
def test_other_names_of_the_column_of_languages(tmp_path, column):
    row = {"prompt": "a", "response": "b", "prompt_en": "c", column: "swh"}
    path = write(tmp_path / "rows.jsonl", [row])
    assert load_rows([path])[0]["lang"] == ["sw"]
    write(tmp_path / "rows.jsonl", [row | {"lang": "te"}])
    assert load_rows([path])[0]["lang"] == ["te"]
    write(tmp_path / "rows.jsonl", [row | {column: "python"}])  # of another kind
    dataset, report = load(path, lang="sw")
    assert dataset["lang"] == ["sw"]
    assert f"column {column} is not read, because the source has lang: sw" in report.notes[0]


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
    with pytest.raises(UserError, match=r"me/rows: no such file, and no data set on the hub.*network") as caught:
        load("me/rows")
    assert "\n" not in str(caught.value)


def test_origin_is_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))
    assert load(tmp_path / "a.jsonl")[0]["origin"] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4"]
    assert load(as_csv(tmp_path))[0]["origin"][2] == f"{tmp_path}/rows.csv:5"  # the second record spans two lines
    assert load(array(tmp_path))[0]["origin"][1] == f"{tmp_path}/rows.json[1]"
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


SYSTEM = {"role": "system", "content": "Uwe mwema."}


def test_alpaca(tmp_path):
    record = {"instruction": "Tafsiri", "input": "paka", "output": "cat", "instruction_en": "Translate"}
    assert one(tmp_path, {**record, "input_en": "the animal"}) == (
        "Tafsiri\n\npaka",
        "cat",
        "Translate\n\nthe animal",
    )
    assert one(tmp_path, {**record, "input": "", "input_en": ""}) == ("Tafsiri", "cat", "Translate")
    path = write(tmp_path / "half.jsonl", [{**record, "lang": "sw"}] * 3 + [{**record, "input": "", "lang": "sw"}])
    (note,) = load(path)[1].notes
    assert "3 rows have an input, and their reference is the instruction_en alone; give input_en as well." in note


def test_trl_prompt_completion(tmp_path):
    assert one(tmp_path, {"prompt": "a?", "completion": "b", "prompt_en": "c?"}) == ("a?", "b", "c?")
    record = {"prompt": [user("a?")], "completion": [assistant("b")], "prompt_en": [user("c?")]}
    assert one(tmp_path, record) == ([user("a?")], "b", [user("c?")])


def test_messages_give_prompt_and_response(tmp_path):
    turns = [SYSTEM, user("moja"), assistant("sawa"), user("mbili")]
    english = [{**SYSTEM, "content": "Be good."}, user("one"), assistant("fine"), user("two")]
    record = {"messages": [*turns, assistant("tatu")], "messages_en": english}
    assert one(tmp_path, record) == (turns, "tatu", english)
    # up to the last answer; without one, the whole is a prompt that is aligned
    assert one(tmp_path, {**record, "messages": turns}) == (turns[:2], "sawa", english[:2])
    assert one(tmp_path, {**record, "messages": turns[:2]}) == (turns[:2], None, english[:2])


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


def test_reference_rows_have_the_tools_of_their_row_and_never_an_empty_response(tmp_path):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Nairobi"}}}
    row = {"lang": "sw", "prompt": "Hali ya hewa?", "prompt_en": "The weather?", "tools": tools, "response": "Jua."}
    called = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [row | {"response_en": "Sunny."}, row | {"prompt_en": "And now?", "response_en": called}]
    path = write(tmp_path / "t.jsonl", rows)
    dataset, report = load(path, include_reference_rows=True)
    assert report.sources[0].reference_rows == 1
    (english,) = [one for one in dataset if one["lang"] == "en"]
    assert english["response"] == "Sunny." and json.loads(english["tools"]) == tools


def test_a_file_without_responses_is_noted(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b", "prompt_en": "c", "lang": "sw"}])
    report = load(tmp_path / "a.jsonl")[1]
    assert "its rows train the alignment alone (columns: prompt, answer" in report.notes[0]
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


def _load_in_worker(path: str) -> str:
    rows, _report = load_rows([Source(path)])
    return rows.cache_files[0]["filename"]


def test_rows_on_disk_go_with_their_process(tmp_path):
    """Also with a forked worker of multiprocessing, which ends without atexit."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b", "lang": "sw", "prompt_en": "c"}) + "\n")
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        file = Path(pool.submit(_load_in_worker, str(path)).result())
        assert file.is_file()
    assert not file.parent.exists()


@pytest.mark.parametrize(
    ("code", "same"),
    [("EN", True), ("en-US", True), ("en_GB", True), ("eng_Latn", True), ("English", True), ("enm", False)],
)
def test_a_code_with_a_region_is_the_same_language(code, same, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "response": "b", "lang": code, "prompt_en": "c"}) + "\n")
    loaded, _ = load_rows([str(rows)])
    assert (loaded[0]["lang"], loaded[0]["reference"]) == (("en", None) if same else (code, "c"))


def test_rows_that_were_checked_are_not_parsed_again(tmp_path, monkeypatch):
    rows, _ = load(write(tmp_path / "rows.jsonl", ROWS[:3]))
    monkeypatch.setattr(row_reader.RowReader, "parse", lambda *args, **options: pytest.fail("parsed again"))
    for data in (rows, rows.select([2, 0]), rows.add_column("more", [1, 2, 3])):
        assert in_schema(data, "en", "rows", required=True)[0] is data
    monkeypatch.undo()
    bare = rows.map(lambda row: {"reference": None})
    with pytest.raises(UserError, match=r"rows.jsonl:1: reference: no parallel of the prompt"):
        in_schema(bare, "en", "rows", required=True)
