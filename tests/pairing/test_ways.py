"""The ways to the English side: join, parallel text, and rows that are made."""

from __future__ import annotations

import gzip
import json
import random
import sys

import datasets
import pytest

from cctuning.data import load_parallel, load_rows
from cctuning.errors import UserError
from cctuning.pairing.options import PairSource
from tests.pairing.world import CHINESE, ENGLISH, SWAHILI, ids, paired, run, write


@pytest.fixture
def english(tmp_path):
    return write(tmp_path / "english.jsonl", random.Random(0).sample(ENGLISH, len(ENGLISH)))


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", SWAHILI)


def joined(path, english, **options):
    return {"path": path, "way": "join", "english": english, **options}


def loads(tmp_path):
    dataset, report = load_rows([str(tmp_path / "out" / "rows.jsonl")])
    assert not report.skipped
    return dataset


def test_tools_calls_thinking_and_template_arguments_are_written_and_read_again(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Nairobi"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    asked = {"messages": [{"role": "user", "content": SWAHILI[0]["prompt"]}], "tools": tools, "lang": "sw"}
    asked["messages"].append({"role": "assistant", "content": "", "tool_calls": [call]})
    asked |= {"messages_en": [{"role": "user", "content": ENGLISH[0]["prompt"]}]}
    thought = {**paired()[1], "thinking": "Fruits.", "chat_template_kwargs": {"enable_thinking": True}}
    path = write(tmp_path / "rows.jsonl", [asked, thought])
    run(tmp_path, {"path": path, "way": "given"})
    before, after = load_rows([path])[0], loads(tmp_path)
    for name in ("prompt", "response", "reference", "thinking", "calls", "tools", "arguments"):
        assert after[name][:] == before[name][:], name


# -- join -----------------------------------------------------------------------------------------------------------


def test_join_by_id(tmp_path, rows, english):
    card, kept, rejects = run(tmp_path, joined(rows, english, licence="CC0"))
    assert [(row["prompt"], row["prompt_en"]) for row in kept] == [(r["prompt"], r["prompt_en"]) for r in paired()]
    assert kept[0]["response_en"] == "The capital is Nairobi." and "english.jsonl:" in kept[0]["origin_en"]
    assert not rejects and card["languages"] == {"sw": 4}
    assert set(card["sources"][0]["fingerprints"]) == {rows, english} and card["sources"][0]["licence"] == "CC0"
    assert loads(tmp_path)["reference"][:] == [row["prompt_en"] for row in paired()]


def test_rows_with_one_parallel_stand_together(tmp_path, rows, english):
    chinese = write(tmp_path / "zh.jsonl", CHINESE)
    card, kept, _ = run(tmp_path, joined(rows, english), joined(chinese, english))
    assert ids(kept) == [("sw", 1), ("zh", 1), ("sw", 2), ("sw", 3), ("zh", 3), ("sw", 4)]
    assert card["parallels"] == 4 and card["rows"] == 6


def test_rows_in_the_reference_language_alone_are_noted(tmp_path, english):
    rows = [{**row, "lang": "en"} for row in ENGLISH]
    card, _, _ = run(tmp_path, {"path": write(tmp_path / "r.jsonl", rows), "way": "given"})
    assert card["notes"] == ["all rows are in English, the reference language: nothing is aligned by them."]


def test_notes_are_written_where_a_limit_ends_the_reading_too(tmp_path, english):
    path = write(tmp_path / "more.jsonl", [{**row, "system_prompt": "Be kind."} for row in paired()])
    for source in ({"path": path, "way": "given"}, joined(path, english)):
        for limit in ({}, {"limit": 2}):
            card, kept, _ = run(tmp_path, {**source, **limit}, overwrite=True)
            notes = " ".join(card["sources"][0]["notes"])
            assert "suggests context for the prompt: system_prompt" in notes and len(kept) == limit.get("limit", 4)
            assert ("prompt_en is not used" in notes) == (source["way"] == "join")
    pairs = [{"lang": "sw", "text": r["prompt"], "text_en": r["prompt_en"], "response": "x"} for r in paired()]
    source = {"path": write(tmp_path / "p.jsonl", pairs), "way": "parallel", "limit": 2}
    card, _, _ = run(tmp_path, source, overwrite=True)
    assert "its responses are not used" in " ".join(card["sources"][0]["notes"])


def test_join_by_columns_of_another_type_and_from_another_format(tmp_path, english):
    english = str(tmp_path / "english.parquet")
    table = [{"set": "a", "number": str(row["id"]), "q": row["prompt"], "more": 0.5} for row in ENGLISH]
    datasets.Dataset.from_list(table).to_parquet(english)
    keyed = [{**row, "set": "a", "number": row["id"]} for row in SWAHILI]
    side = {"path": english, "columns": {"prompt": "q"}}
    source = joined(write(tmp_path / "r.jsonl", keyed), side, key=["set", "number"])
    assert len(run(tmp_path, source)[1]) == 4


def test_join_by_whole_numbers_that_pandas_made_floats(tmp_path, english):
    table = [{**row, "id": [1.0, 2.0, 3.5, None][row["id"] - 1]} for row in SWAHILI]
    datasets.Dataset.from_list(table).to_parquet(str(tmp_path / "r.parquet"))
    _, kept, rejects = run(tmp_path, joined(str(tmp_path / "r.parquet"), english))
    assert [row["prompt_en"] for row in kept] == [row["prompt"] for row in ENGLISH[:2]]
    assert '["3.5"]' in rejects[0]["says"] and "empty" in rejects[1]["says"]


def test_join_within_one_file(tmp_path):
    path = write(tmp_path / "all.jsonl", [*({**row, "lang": "en"} for row in ENGLISH), *SWAHILI, *CHINESE])
    source = joined(path, {"path": path, "where": {"lang": "en"}}, where={"lang": "sw"})
    assert ids(run(tmp_path, source)[1]) == [("sw", 1), ("sw", 2), ("sw", 3), ("sw", 4)]


def test_join_by_index(tmp_path, rows):
    english = write(tmp_path / "english.jsonl", ENGLISH)
    assert len(run(tmp_path, joined(rows, english, key=["index"]))[1]) == 4


def test_by_index_the_sides_must_be_of_one_length(tmp_path, rows):
    english = write(tmp_path / "english.jsonl", ENGLISH[:3])
    with pytest.raises(UserError, match=r"4 records, where .* has 3"):
        run(tmp_path, joined(rows, english, key=["index"]))
    assert not (tmp_path / "out").exists()


def test_what_a_key_does_not_find_or_finds_twice_is_told(tmp_path, rows):
    english = [*ENGLISH[1:], ENGLISH[1], {"id": 3, "prompt": "Another prompt."}, {"id": None, "prompt": "x y"}]
    card, kept, rejects = run(tmp_path, joined(rows, write(tmp_path / "e.jsonl", english)))
    assert ids(kept) == [("sw", 2), ("sw", 4)]  # of id 2, both records say the same
    said = {reject["row"]["id"]: (reject["reason"], reject["says"]) for reject in rejects}
    assert said[1][0] == "join" and "no record" in said[1][1]
    assert said[3][0] == "join" and "2 different prompts" in said[3][1] and "e.jsonl:2 and" in said[3][1]
    notes = " ".join(card["sources"][0]["notes"])
    assert "1 records cannot be joined, the first: " in notes and "e.jsonl:6: no value under id" in notes
    assert card["sources"][0]["rejected"] == {"join": 2}


def test_a_key_that_is_no_column_is_refused(tmp_path, rows, english):
    with pytest.raises(UserError, match="no value under number; it has the columns id, prompt, response"):
        run(tmp_path, joined(rows, english, key=["number"]))


# -- parallel text --------------------------------------------------------------------------------------------------


def test_two_plain_files(tmp_path):
    (tmp_path / "t.en").write_text("".join(row["prompt"] + "\n" for row in ENGLISH), encoding="utf-8")
    text = "\r\n".join(row["prompt"] for row in SWAHILI).encode()
    (tmp_path / "t.sw.gz").write_bytes(gzip.compress(text))
    source = {"path": str(tmp_path / "t.sw.gz"), "way": "parallel", "english": str(tmp_path / "t.en"), "lang": "sw"}
    card, kept, _ = run(tmp_path, source)
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in SWAHILI]
    assert kept[0]["response"] is None and card["without_response"] == 4
    assert loads(tmp_path)["response"][:] == [None] * 4
    (tmp_path / "t.en").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(UserError, match="ends before line 3"):
        run(tmp_path / "again", source)


def test_rejects_have_what_was_read_in_every_format(tmp_path):
    (tmp_path / "t.sw").write_text("Habari?\n\nNzuri.\n", encoding="utf-8")
    (tmp_path / "t.en").write_bytes(b"News?\nOne side.\nGo\xffd.\n")
    (tmp_path / "t.tsv").write_text("en\tsw\nNews?\tHabari?\nOne side.\t\nNo cell.\n", encoding="utf-8")
    units = ("News?", "Habari?"), ("One side.", "")
    tus = (f"<tu><tuv lang='en'><seg>{e}</seg></tuv><tuv lang='sw'><seg>{s}</seg></tuv></tu>" for e, s in units)
    (tmp_path / "t.tmx").write_text(f"<tmx><body>{''.join(tus)}</body></tmx>", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text('{"prompt": "Habari?", "prompt_en": "News?", "lang": "sw"}\n{"no\n[1]\n')
    half = {"en": "One side.", "sw": ""}
    for name, way, rows in (
        ("t.sw", "parallel", [{"text": "", "reference": "One side."}, {"text": "Nzuri.", "reference": "Go?d."}]),
        ("t.tsv", "parallel", [half, {"line": ["No cell."]}]),
        ("t.tmx", "parallel", [half]),
        ("t.jsonl", "given", [{"line": '{"no'}, {"line": [1]}]),
    ):
        _, kept, rejects = run(tmp_path, {"path": str(tmp_path / name), "way": way}, overwrite=True)
        assert len(kept) == 1 and [reject["row"] for reject in rejects] == rows


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd"%s>
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="en-US"><seg>The <bpt i="1">&lt;b&gt;</bpt>cat<ept i="1">&lt;/b&gt;</ept> sleeps.</seg></tuv>
<tuv xml:lang="SWA"><seg>Paka <hi>amelala</hi> &amp; anaota.</seg></tuv>
<tuv xml:lang="fr"><seg>Le chat dort.</seg></tuv></tu>
<tu><tuv xml:lang="fr"><seg>Rien</seg></tuv></tu></body></tmx>"""


def test_tmx(tmp_path):
    (tmp_path / "m.tmx").write_text(TMX % "", encoding="utf-8")
    _, kept, rejects = run(tmp_path, {"path": str(tmp_path / "m.tmx"), "way": "parallel"})
    assert [(row["lang"], row["prompt"], row["prompt_en"]) for row in kept] == [
        ("sw", "Paka amelala & anaota.", "The cat sleeps."),
        ("fr", "Le chat dort.", "The cat sleeps."),
    ]
    assert "no text in en" in rejects[0]["says"] and rejects[0]["origin"].endswith("unit 2")
    (tmp_path / "fr").mkdir()
    _, kept, _ = run(tmp_path / "fr", {"path": str(tmp_path / "m.tmx"), "way": "parallel", "lang": "fr"})
    assert [row["lang"] for row in kept] == ["fr"]


@pytest.mark.parametrize("kept", [0.5, None])
def test_a_damaged_archive_is_one_line(kept, tmp_path):
    """Half of a gzip file, and a file that only calls itself one."""

    def spoiled(name, text):
        whole = gzip.compress(text.encode())
        (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)] if kept else b"no archive")
        return str(tmp_path / name)

    text = "".join(f"Habari namba {number}.\n" for number in range(5000))
    (tmp_path / "t.en").write_text(text, encoding="utf-8")
    plain = {"path": spoiled("t.sw.gz", text), "way": "parallel", "lang": "sw"}
    with pytest.raises(UserError, match=r"t.sw.gz:\d+: cannot be read from here on"):
        run(tmp_path, {**plain, "english": {"path": str(tmp_path / "t.en")}})
    units = "<tu><tuv xml:lang='en'><seg>One.</seg></tuv><tuv xml:lang='sw'><seg>Moja.</seg></tuv></tu>" * 5000
    tmx = spoiled("m.tmx.gz", f"<tmx><body>{units}</body></tmx>")
    with pytest.raises(UserError, match="not a readable TMX file"):
        run(tmp_path, {"path": tmx, "way": "parallel"})


def test_tmx_that_names_a_file_as_an_entity_is_an_error(tmp_path):
    entity = ' [<!ENTITY x SYSTEM "file:///etc/hostname">]'
    (tmp_path / "m.tmx").write_text((TMX % entity).replace("sleeps", "&x;"), encoding="utf-8")
    with pytest.raises(UserError, match="undefined entity &x;"):
        run(tmp_path, {"path": str(tmp_path / "m.tmx"), "way": "parallel"})
    (tmp_path / "m.tmx").write_text((TMX % "")[:400], encoding="utf-8")
    with pytest.raises(UserError, match="not a readable TMX file"):
        run(tmp_path, {"path": str(tmp_path / "m.tmx"), "way": "parallel"})


def test_records_of_parallel_text(tmp_path):
    pairs = [{"id": r["id"], "lang": "swa", "text": r["prompt"], "text_en": r["prompt_en"]} for r in paired()]
    _, kept, _ = run(tmp_path, {"path": write(tmp_path / "p.jsonl", pairs), "way": "parallel"})
    assert ids(kept) == [("sw", n) for n in (1, 2, 3, 4)] and {row["response"] for row in kept} == {None}


# -- rows that are made ---------------------------------------------------------------------------------------------

ENGINE = """
import json, pathlib
WORDS = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
def translate(texts, source, target):
    return [WORDS.get(text, "") for text in texts]
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A translator that knows these rows, both ways; a text it does not know comes back empty."""
    english = {row["id"]: row for row in ENGLISH}
    words = {}
    for row in SWAHILI:
        other = english[row["id"]]
        words |= {row["prompt"]: other["prompt"], other["prompt"]: row["prompt"]}
        words |= {other["response"]: row["response"]}
    name = f"engine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(ENGINE, encoding="utf-8")
    (tmp_path / f"{name}.json").write_text(json.dumps(words), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield {"engine": "function", "function": f"{name}:translate"}
    sys.modules.pop(name, None)


def test_translated(tmp_path, engine):
    strange = {"id": 9, "lang": "sw", "prompt": "Maneno yasiyojulikana kabisa."}
    own = {"id": 10, "lang": "en", "prompt": "What is the longest river of the world?", "response": "The Nile."}
    path = write(tmp_path / "rows.jsonl", [*SWAHILI, strange, own])
    card, kept, rejects = run(tmp_path, {"path": path, "way": "translate"}, engine=engine)
    assert [row.get("prompt_en") for row in kept] == [*(row["prompt_en"] for row in paired()), None]
    assert [(reject["row"]["id"], reject["reason"]) for reject in rejects] == [(9, "translation")]
    assert card["sources"][0]["engines"][f"function {engine['function']}"]["texts"] == 5
    assert loads(tmp_path)["lang"][:] == ["sw"] * 4 + ["en"]


def test_conversations_are_translated_turn_by_turn(tmp_path, engine):
    turns = [{"role": "user", "content": SWAHILI[0]["prompt"]}, {"role": "assistant", "content": SWAHILI[2]["prompt"]}]
    turns.append({"role": "user", "content": SWAHILI[3]["prompt"]})
    row = {"lang": "sw", "messages": [*turns, {"role": "assistant", "content": "Bibi mpendwa."}]}
    _, kept, _ = run(tmp_path, {"path": write(tmp_path / "r.jsonl", [row]), "way": "translate", "engine": engine})
    assert [turn["content"] for turn in kept[0]["prompt_en"]] == [ENGLISH[n]["prompt"] for n in (0, 2, 3)]
    assert kept[0]["prompt"] == [turns[0], {"train": True, **turns[1]}, turns[2]]  # learned, as in `messages`
    assert kept[0]["response"] == "Bibi mpendwa."
    assert [turn["role"] for turn in loads(tmp_path)[0]["reference"]] == ["user", "assistant", "user"]


def test_tool_calls_and_answers_of_tools_stay_in_a_translated_conversation(tmp_path, engine):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Nairobi"}}}
    turns = [
        {"role": "user", "content": SWAHILI[0]["prompt"]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"degrees": 21}', "name": "weather", "tool_call_id": "c1"},
    ]
    row = {"lang": "sw", "messages": [*turns, {"role": "assistant", "content": "Nyuzi 21."}]}
    row["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    _, kept, _ = run(tmp_path, {"path": write(tmp_path / "r.jsonl", [row]), "way": "translate", "engine": engine})
    assert kept[0]["prompt_en"] == [{**turns[0], "content": ENGLISH[0]["prompt"]}, *turns[1:]]
    reference = loads(tmp_path)[0]["reference"]
    assert json.loads(reference[1]["tool_calls"]) == [call] and reference[2]["content"] == turns[2]["content"]


def test_english_rows_carried_into_a_language(tmp_path, engine):
    unknown = {"id": 9, "prompt": ENGLISH[0]["prompt"], "response": "The engine does not know this answer."}
    path = write(tmp_path / "english.jsonl", [*ENGLISH, unknown])
    _, kept, rejects = run(tmp_path, {"path": path, "way": "translation", "into": "sw", "engine": engine})
    (rejected,) = rejects
    assert rejected["reason"] == "translation" and rejected["row"]["lang"] == "en"  # another engine can have it
    assert {name: rejected["row"][name] for name in unknown} == unknown
    for row, made, source in zip(kept, SWAHILI, ENGLISH, strict=True):
        assert (row["lang"], row["prompt"], row["response"]) == ("sw", made["prompt"], made["response"])
        assert (row["prompt_en"], row["response_en"]) == (source["prompt"], source["response"])
    loads(tmp_path)


@pytest.mark.parametrize(
    "option",
    [{"into": "sw"}, {"english": "e.jsonl"}, {"key": "n"}, {"engine": {"engine": "function", "function": "a:b"}}],
)
def test_options_of_another_way_are_refused(rows, option):
    with pytest.raises(UserError, match=f"{next(iter(option))}: goes with .*, not with given"):
        PairSource.from_dict({"path": rows, "way": "given", **option})


def test_an_engine_that_is_missing_is_asked_for(tmp_path, rows):
    with pytest.raises(UserError, match="translate needs an engine"):
        run(tmp_path, {"path": rows, "way": "translate"})


VARIANTS = {
    "EN-GB": "The river floods every spring and the road is closed.",
    "zh_CN": "这条河每年春天都会泛滥，道路会关闭。",
    "zh_TW": "這條河每年春天都會氾濫，道路會關閉。",
    "nb-NO": "Elva flommer over hver vår, og veien er stengt.",
    "iw": "הנהר עולה על גדותיו בכל אביב והכביש נסגר.",
    "fil": "Umaapaw ang ilog tuwing tagsibol at sarado ang kalsada.",
    "sr-Latn-RS": "Reka se izliva svakog proleća i put je zatvoren.",
    "PT-BR": "O rio transborda toda primavera e a estrada é fechada.",
    "PT-PT": "O rio transborda todas as primaveras e a estrada fica fechada.",
    "lugha": "?",
}


@pytest.mark.parametrize(
    ("lang", "takes"),
    [
        ("zh-Hans", ["zh_CN"]),
        ("zh", ["zh_CN"]),
        ("zh-TW", ["zh_TW"]),
        ("no", ["nb-NO"]),
        ("he", ["iw"]),
        ("tl", ["fil"]),
        ("Serbian Latin", ["sr-Latn-RS"]),
        ("pt-PT", ["PT-PT"]),
        ("por_Latn", ["PT-BR", "PT-PT"]),
        ("sr", ["sr-Latn-RS"]),  # there is no other
        ("fr", []),
    ],
)
def test_a_tmx_gives_the_language_and_script_asked_for(tmp_path, lang, takes):
    variants = "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in VARIANTS.items())
    path = tmp_path / "memory.tmx"
    path.write_text(f'<tmx version="1.4"><header/><body><tu>{variants}</tu></body></tmx>', encoding="utf-8")
    if not takes:
        with pytest.raises(UserError, match=r"no text in fr"):
            load_parallel([{"path": str(path), "lang": lang}])
        return
    found, _ = load_parallel([{"path": str(path), "lang": lang}])
    assert sorted(found["text"]) == sorted(VARIANTS[code] for code in takes)
