"""Parallel text that is refused, listed or noted: what is wrong with it is said in one line."""

from __future__ import annotations

import bz2
import zipfile

import pytest

from cctuning.data import load_parallel
from cctuning.errors import UserError
from cctuning.pairing.names import NamesOptions, names
from tests.data import parallel_files as files
from tests.data.parallel_files import CHINESE, ENGLISH, PAIRS, SWAHILI, one, pairs, records, refused, text, unit
from tests.pairing.world import lines


def test_bad_pairs_stop_or_are_listed(tmp_path):
    rows = [*PAIRS[:3], ("", "Nothing."), ("Kitu.", " ")]
    path = text(tmp_path / "x.en-sw.tsv", [f"{en}\t{sw}" for sw, en in rows])
    refused(r"x.en-sw.tsv:4: text: one side is empty. \(Or set bad_rows: skip", path)
    dataset, report = one(path, bad_rows="skip")
    assert pairs(dataset) == PAIRS[:3] and report.sources[0].skipped == 2
    assert [skip.origin for skip in report.skipped] == [f"{path}:4", f"{path}:5"]
    (tmp_path / "y.en").write_bytes(b"good\nb\xff\n"), text(tmp_path / "y.sw", ["nzuri", "x"])
    refused("y.sw:2: reference: byte 0xff at character 2 is not UTF-8", tmp_path / "y.sw")
    (tmp_path / "z.en-sw.tsv").write_bytes("".join(f"{e}\t{s}\n" for s, e in PAIRS).encode() + b"a\xff\tb\n")
    refused("z.en-sw.tsv:7: column 1: byte 0x.. at character .* is not UTF-8", tmp_path / "z.en-sw.tsv")


def test_languages_on_their_sides(tmp_path):
    english = [{"text": f"{en} Indeed.", "text_en": en, "lang": "sw"} for en in ENGLISH]
    refused("in [4-6] of [4-6] pairs checked the text is not in sw", records(tmp_path / "a.jsonl", english))
    swapped = [{"text": en, "text_en": sw, "lang": "sw"} for sw, en in PAIRS]
    refused("the sides are swapped", records(tmp_path / "b.jsonl", swapped))
    same = [{"text": en, "text_en": en, "lang": "sw"} for en in ENGLISH]
    refused("in 6 of 6 pairs both sides are the same", records(tmp_path / "c.jsonl", same))
    wrong = [{"text": zh, "text_en": en, "lang": "sw"} for zh, en in zip(CHINESE, ENGLISH, strict=True)]
    refused("in [4-6] of [4-6] pairs checked the text is not in sw", records(tmp_path / "d.jsonl", wrong))
    names = [
        *({"text": sw, "text_en": en, "lang": "sw"} for sw, en in PAIRS),
        {"text": "Nairobi", "text_en": "Nairobi", "lang": "sw"},
    ]
    _, report = one(records(tmp_path / "e.jsonl", names))
    assert "1 pairs both sides are the same" in report.notes[0]


def test_names_are_not_taken_for_another_language(tmp_path):
    """lingua reads a list of names, and longer names of currencies, as any language."""
    for lang in ("sw", "yo", "it", "da", "et", "zu"):
        names(NamesOptions([lang], str(tmp_path / f"{lang}.jsonl")))
        for kind in ("currency", "language", "city"):
            rows = [row for row in lines(tmp_path / f"{lang}.jsonl") if row["kind"] == kind]
            assert set(one(records(tmp_path / "x.jsonl", rows))[0]["lang"]) == {lang}


def test_what_is_no_parallel_text(tmp_path):
    refused("no such file", tmp_path / "missing.tsv")
    refused(
        "no parallel text; expected columns text and text_en.*It has a, b",
        records(tmp_path / "a.jsonl", [{"a": 1, "b": 2}]),
    )
    refused("no parallel text", text(tmp_path / "b.txt", ["one line", "another"]))
    refused(
        "c.jsonl: the language of its text cannot be identified; give the source a lang",
        records(tmp_path / "c.jsonl", [{"text": "a", "text_en": "b"}]),
    )
    refused("is empty", text(tmp_path / "d.tsv", []))
    refused("neither of them en", text(tmp_path / "e.de-fr.tsv", ["a\tb", "c\td"]))
    refused("no text in en; it has fr, sw", records(tmp_path / "f.jsonl", [{"translation": {"fr": "a", "sw": "b"}}]))
    refused("cannot tell which of columns 1 and 2 is in en", text(tmp_path / "g.tsv", ["ab\tcd", "ef\tgh"]))
    text(tmp_path / "h.en", ENGLISH), text(tmp_path / "h.sw", SWAHILI[:3])
    refused("h.sw: ends before line 4, .*h.en does not", tmp_path / "h.sw")
    (tmp_path / "empty").mkdir()
    refused("no parallel text in this directory", tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("README", "x")
    refused("no parallel text among its files", tmp_path / "i.zip")
    (tmp_path / "j.zip").write_bytes(b"PK no")
    refused("not a readable zip file", tmp_path / "j.zip")
    refused(
        "columns: text: no column 'txt' among text, text_en. Did you mean 'text'",
        records(tmp_path / "k.jsonl", [{"text": "a", "text_en": "b"}]),
        columns={"text": "txt"},
    )
    for name in ("k.jsonl", "k.csv"):
        file = tmp_path / name
        file.write_text('{"text": "a", "text_en": "b"}\n' if name == "k.jsonl" else "text,text_en\na,b\n")
        refused("where: no column 'kind' among text, text_en", file, where={"kind": "x"}, lang="sw")
    refused(
        "the language of its text cannot be identified",
        text(tmp_path / "l.txt", ["42"]),
        reference=text(tmp_path / "m.txt", ["42"]),
    )
    text(tmp_path / "n.fr", SWAHILI), text(tmp_path / "n.en", ENGLISH), text(tmp_path / "n.sw", SWAHILI)
    refused("more than one file matches it: n.fr, n.sw", tmp_path / "n.en")


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 9))
BOMB = f'<!DOCTYPE tmx [<!ENTITY a0 "{"ha" * 20}">{LAUGHS}]><tmx><body>&a8;</body></tmx>'


@pytest.mark.parametrize(
    "body, says",
    [
        ("<tmx><body>" + unit(("en", "A"), ("sw", "B")), "not a readable TMX file after unit 1"),
        (
            '<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]><tmx><body>&a;</body></tmx>',
            "not a readable TMX file after unit 0: undefined entity &a;",
        ),
        (BOMB, "not a readable TMX file after unit 0: limit on input amplification factor"),
        ("<tmx><body>" + unit(("fr", "A"), ("sw", "B")) + "</body></tmx>", "no text in en; it has fr, sw"),
    ],
)
def test_tmx_that_is_refused(body, says, tmp_path):
    (tmp_path / "x.tmx").write_text(body, encoding="utf-8")
    refused(says, tmp_path / "x.tmx")


@pytest.mark.parametrize(
    "options, says",
    [
        ({"path": "x", "refrence": "y"}, r"parallel\[0\]: unknown key 'refrence'.*Did you mean 'reference'"),
        ({"reference": "y"}, r"parallel\[0\]: path: missing"),
        ({"path": "x", "lang": False}, "lang: expected text or null, got False; put it in quotes"),
        ({"path": "x", "lang": "qqqq"}, "lang: unknown language 'qqqq'"),
        ({"path": "x", "limit": 0}, "limit: expected at least 1"),
        ({"path": "x", "weight": -1}, "weight: expected a number above 0"),
        ({"path": "x", "bad_rows": "no"}, "bad_rows: .* is not one of error, skip"),
        ({"path": "x", "columns": {"txt": "a"}}, "unknown part 'txt'.*Did you mean 'text'"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        load_parallel([options])


def test_a_language_without_a_model_is_told_from_the_reference_language(tmp_path):
    hausa = [
        "Yara suna wasa a gida yau da safe.",
        "Ruwa yana da sanyi sosai a cikin kogi.",
        "Malam ya tafi kasuwa domin sayen nama.",
        "Mun ci abinci tare da abokai jiya da dare.",
        "Akwai littattafai da yawa a cikin wannan daki.",
    ]
    english = [
        "The children are playing at home this morning.",
        "The water is very cold in the river.",
        "The teacher went to the market to buy meat.",
        "We ate food with our friends last night.",
        "There are many books in this room.",
    ]
    for name, both in (("a.tsv", zip(english, hausa, strict=True)), ("b.tsv", zip(hausa, english, strict=True))):
        dataset, _ = one(text(tmp_path / name, ["\t".join(line) for line in both]), lang="ha")
        assert pairs(dataset) == list(zip(hausa, english, strict=True)), name
    swapped = [{"text": e, "text_en": h, "lang": "ha"} for h, e in zip(hausa, english, strict=True)]
    refused("the sides are swapped", records(tmp_path / "c.jsonl", swapped))


def test_a_directory_of_plain_files_has_splits_as_one_of_tables_has(tmp_path):
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        text(tmp_path / f"{split}.en", ENGLISH[part]), text(tmp_path / f"{split}.sw", SWAHILI[part])
    assert pairs(one(tmp_path)[0]) == PAIRS[:4] and pairs(one(tmp_path, split="test")[0]) == PAIRS[4:]
    refused("no file of the split 'dev' among test.en, test.sw", tmp_path, split="dev")


def test_a_header_and_bad_lines_are_told(tmp_path):
    path = files.headed_tsv(tmp_path)
    with open(path, "a", encoding="utf-8") as file:
        file.write("\nAlone\t\n")
    dataset, report = one(path, bad_rows="skip")
    assert pairs(dataset) == PAIRS
    assert f"{path}: 1 bad records were left out, the first: {path}:9: text: one side is empty." in report.notes
    assert f"{path}:1: is read as a header, not as a pair: English sentence, Kiswahili." in report.notes


def test_a_label_of_a_third_language(tmp_path):
    """Neither side is in the other's language, so only a look at all languages tells."""
    rows = [{"text": sw, "text_en": en, "lang": "st"} for sw, en in PAIRS]
    refused("the text is in Swahili, not in Southern Sotho; correct lang:", records(tmp_path / "a.jsonl", rows))
    french = ["Le fleuve déborde chaque année et la route est fermée.", "Les enfants jouent au ballon dans la cour."]
    french += ["Je viendrai demain matin pour t'aider au travail.", "Le médecin dit de boire beaucoup d'eau par jour."]
    rows = [{"text": SWAHILI[n], "text_en": fr, "lang": "sw"} for n, fr in zip((0, 1, 3, 5), french, strict=True)]
    refused("the reference is in French, not in English", records(tmp_path / "b.jsonl", rows))
    half = [{"text": ENGLISH[n], "text_en": SWAHILI[n], "lang": "sw"} for n in (0, 1, 3, 5)]
    half += [{"text": f"{sw} Tena sasa.", "text_en": f"{en} Again now.", "lang": "sw"} for sw, en in PAIRS]
    notes = one(records(tmp_path / "c.jsonl", half))[1].notes
    assert any("the sides are swapped; cctuning pair finds such pairs" in note for note in notes), notes


def test_a_tar_archive_has_to_be_unpacked(tmp_path):
    archive = tmp_path / "sentences.tar.bz2"
    archive.write_bytes(bz2.compress(b""))
    refused("a tar archive; unpack it first", archive)
    refused("Unpack sentences.tar.bz2 first", tmp_path)
