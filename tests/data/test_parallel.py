"""Parallel text in every layout comes out the same; what is wrong with it is said in one line."""

from __future__ import annotations

import bz2
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cctuning.data import ParallelSource, load_parallel
from cctuning.data.parallel.filenames import in_name, named_by
from cctuning.data.text import Seen
from cctuning.errors import UserError
from cctuning.languages import canonical_or_none, matching
from cctuning.pairing.names import NamesOptions, names
from tests.data import parallel_files as files
from tests.data.parallel_files import CHINESE, ENGLISH, PAIRS, SWAHILI, records, text, unit
from tests.pairing.world import lines

DATA = Path(os.environ.get("CC_TUNING_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
CASES = DATA.parent / "cases"
LAYOUTS = (
    *(
        files.beside,
        files.as_in_python,
        files.prompts,
        files.conversations,
        files.translation,
        files.translation_parquet,
    ),
    *(files.columns_csv, files.quoted_tsv, files.all_quoted_tsv, files.tico_tsv, files.sentence_transformers),
    *(files.many_things, files.many_things_zip, files.tatoeba_pairs, files.wikimatrix, files.nllb_tsv),
    *(files.tatoeba_challenge, files.moses, files.moses_by_reference, files.moses_prefix, files.moses_zst),
    *(files.flores, files.opus_zip, files.tmx, files.tbx, files.tatoeba_export, files.directory, files.saved),
    *(files.headed_tsv, files.tatoeba_by_language),
)


def pairs(dataset):
    return list(zip(dataset["text"], dataset["reference"], strict=True))


def one(path, **options):
    keywords = {key: options.pop(key) for key in ("reference_language", "seed") if key in options}
    return load_parallel([{"path": str(path), **options}], **keywords)


def refused(says, path, **options):
    with pytest.raises(UserError, match=says) as error:
        one(path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_pairs(layout, tmp_path):
    path = layout(tmp_path)
    dataset, report = load_parallel([path])
    assert pairs(dataset) == PAIRS
    assert set(dataset["lang"]) == {"sw"}
    assert dataset.column_names == ["text", "reference", "lang", "origin"]
    assert report.as_dict()["languages"] == {"sw": 6} and report.pairs == 6
    assert all(re.search(r":((unit|entry) )?\d+$", origin) for origin in dataset["origin"])
    source = report.sources[0]
    assert all(value.startswith("sha256:") for value in source.fingerprints.values()) and source.fingerprints
    assert ("response" in " ".join(report.notes)) == (layout is files.prompts)


def test_origins_are_lines(tmp_path):
    path = files.many_things(tmp_path)
    assert one(path)[0]["origin"][1] == f"{path}:2"
    path = files.columns_csv(tmp_path)
    assert one(path)[0]["origin"][0] == f"{path}:2"


def test_the_dataset_lies_on_disk(tmp_path):
    dataset, _ = load_parallel(files.beside(tmp_path))
    assert Path(dataset.cache_files[0]["filename"]).is_file()


def test_two_bare_paths_are_one_source(tmp_path):
    (tmp_path / "other").mkdir()
    english = text(tmp_path / "other" / "side.en", ENGLISH)
    swahili = text(tmp_path / "text.sw", SWAHILI)
    for given in ([swahili, english], [english, swahili]):
        dataset, report = load_parallel(given)
        assert pairs(dataset) == PAIRS and len(report.sources) == 1


def test_two_files_with_any_names(tmp_path):
    path, reference = text(tmp_path / "a.txt", SWAHILI), text(tmp_path / "b.txt", ENGLISH)
    assert set(one(path, reference=reference)[0]["lang"]) == {"sw"}  # told from the text
    assert set(one(path, reference=reference, lang="swh")[0]["lang"]) == {"sw"}


def test_a_directory_and_a_prefix_give_every_language_beside_the_reference(tmp_path):
    for lang, said in (("en", ENGLISH), ("sw", SWAHILI), ("zh", CHINESE)):
        text(tmp_path / f"corpus.{lang}", said)
    for path in (tmp_path, tmp_path / "corpus"):
        assert one(path)[1].languages == {"sw": 6, "zh": 6}
        assert one(path, lang="zh")[1].languages == {"zh": 6}


def test_a_reference_language_other_than_english(tmp_path):
    rows = [{"translation": {"zh": zh, "en": en, "sw": sw}} for zh, (sw, en) in zip(CHINESE, PAIRS, strict=True)]
    path = records(tmp_path / "rows.jsonl", rows)
    dataset, report = one(path, reference_language="zh")
    assert report.languages == {"en": 6, "sw": 6} and dataset["reference"][:2] == [CHINESE[0]] * 2
    dataset, report = one(path, reference_language="zh", lang="sw")
    assert pairs(dataset) == list(zip(SWAHILI, CHINESE, strict=True))


def test_the_side_is_told_by_script_whatever_the_name_says(tmp_path):
    path = text(tmp_path / "x.en-zh.tsv", [f"{zh}\t{en}" for zh, en in zip(CHINESE, ENGLISH, strict=True)])
    assert pairs(one(path)[0])[0] == (CHINESE[0], ENGLISH[0])


def test_columns_can_be_named_or_numbered(tmp_path):
    path = records(tmp_path / "rows.jsonl", [{"a": sw, "b": en, "c": "Swahili"} for sw, en in PAIRS])
    assert pairs(one(path, columns={"text": "a", "reference": "b", "lang": "c"})[0]) == PAIRS
    path = text(tmp_path / "x.tsv", [f"note\t{en}\t{sw}\tanother" for sw, en in PAIRS])
    assert pairs(one(path, columns={"text": 3, "reference": 2}, lang="sw")[0]) == PAIRS
    refused(
        "expected two columns of text, found 4 of 4.*say which", text(tmp_path / "y.tsv", ["a\tb\tc\td", "e\tf\tg\th"])
    )
    refused("expected a number from 1 to 4", path, columns={"text": "9", "reference": "2"})


def test_a_tmx_of_many_languages(tmp_path):
    if not (CASES / "multi.tmx").is_file():
        pytest.skip(f"no {CASES / 'multi.tmx'}; set CC_TUNING_DATA")
    path = CASES / "multi.tmx"
    assert one(path, lang="zh-Hans")[0]["text"][:] == ["这条河每年春天都会泛滥，道路会关闭。"]
    assert one(path, lang="zh-Hant")[0]["text"][:] == ["這條河每年春天都會氾濫，道路會關閉。"]
    assert one(path, lang="no")[0]["text"][:] == ["Elva flommer over hver vår, og veien er stengt."]
    assert one(path, lang="he")[0]["lang"][:] == ["he"] == one(path, lang="iw")[0]["lang"][:]
    assert one(path, lang="tl")[0]["text"][:] == ["Umaapaw ang ilog tuwing tagsibol at sarado ang kalsada."]
    dataset, report = one(path, lang="pt-PT")
    assert dataset["text"][0].endswith("fica fechada.") and len(dataset) == 2
    dataset, report = one(path)
    assert len(dataset) == 9 and "fewer than 4 pairs" in report.notes[-1]
    refused("no text in fr", path, lang="fr")


@pytest.mark.parametrize("name", ["swallow.tsv", "lead.tsv"])
def test_a_quotation_mark_is_a_letter(name):
    if not (CASES / name).is_file():
        pytest.skip(f"no {CASES / name}; set CC_TUNING_DATA")
    dataset, _ = one(CASES / name)
    raw = [line.split("\t") for line in (CASES / name).read_text(encoding="utf-8").splitlines()[1:]]
    assert pairs(dataset) == [(cells[0], cells[3]) for cells in raw]


def test_answers_to_a_code():
    assert matching("zh-Hans", ["zh-CN", "zh-TW"]) == ["zh-CN"]
    assert matching("zh", ["zh-TW"]) == ["zh-TW"] and matching("zh-Hans", ["zh-TW"]) == []
    assert matching("pt-BR", ["pt-PT", "pt"]) == ["pt"] and matching("pt", ["pt-PT", "pt-BR"]) == ["pt-PT", "pt-BR"]
    assert matching("sr", ["sr-Latn-RS"]) == ["sr-Latn-RS"] and matching("no", ["nn", "nb-NO"]) == ["nb-NO"]
    assert [canonical_or_none(code) for code in ("eng_Latn", "swh", "zh_hans", "iw", "pt-br")] == [
        "en",
        "sw",
        "zh",
        "he",
        "pt-BR",
    ]
    assert in_name("WikiMatrix.en-sw") == ("en", "sw") and in_name("eng_Latn-swh_Latn") == ("en", "sw")
    assert in_name("my-data") is None and named_by("fra", "en") == "fr" and named_by("rows", "en") is None


def test_limit_weight_and_duplicates(tmp_path):
    path = text(tmp_path / "x.en-sw.tsv", [f"{en}\t{sw}" for sw, en in [*PAIRS, *PAIRS]])
    dataset, report = one(path)
    assert pairs(dataset) == PAIRS and report.sources[0].duplicates == 6 and "6 repeated" in report.notes[0]
    assert pairs(one(path, limit=2)[0]) == PAIRS[:2]
    assert pairs(one(path, weight=2)[0]) == PAIRS * 2
    half, report = one(path, weight=0.5, seed=3)
    assert len(half) == 3 == report.pairs == report.languages["sw"] and set(pairs(half)) < set(PAIRS)
    refused("leaves none", path, weight=0.01)


def test_a_source_that_repeats_an_earlier_one_is_a_note(tmp_path):
    path, other = files.many_things(tmp_path), files.moses(tmp_path)
    dataset, report = load_parallel([path, other])
    assert pairs(dataset) == PAIRS and report.sources[1].pairs == 0 and "6 repeated" in report.notes[-1]


def test_bad_pairs_stop_or_are_listed(tmp_path):
    rows = [*PAIRS[:3], ("", "Nothing."), ("Kitu.", " ")]
    path = text(tmp_path / "x.en-sw.tsv", [f"{en}\t{sw}" for sw, en in rows])
    refused(r"x.en-sw.tsv:4: text: one side is empty. \(Or set bad_rows: skip", path)
    dataset, report = one(path, bad_rows="skip")
    assert pairs(dataset) == PAIRS[:3] and report.sources[0].skipped == 2
    assert [skip.origin for skip in report.skipped] == [f"{path}:4", f"{path}:5"]
    (tmp_path / "y.en").write_bytes(b"good\nb\xff\n"), text(tmp_path / "y.sw", ["nzuri", "x"])
    refused("y.sw:2: line: is not UTF-8", tmp_path / "y.sw")
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
    refused("no language; give the source a lang", records(tmp_path / "c.jsonl", [{"text": "a", "text_en": "b"}]))
    refused("is empty", text(tmp_path / "d.tsv", []))
    refused("neither of them en", text(tmp_path / "e.de-fr.tsv", ["a\tb", "c\td"]))
    refused("no text in en; it has fr, sw", records(tmp_path / "f.jsonl", [{"translation": {"fr": "a", "sw": "b"}}]))
    refused("cannot tell which of columns 1 and 2 is in en", text(tmp_path / "g.tsv", ["1a\t2b", "3c\t4d"]))
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
        "its language cannot be identified",
        text(tmp_path / "l.txt", ["42"]),
        reference=text(tmp_path / "m.txt", ["42"]),
    )
    text(tmp_path / "n.fr", SWAHILI), text(tmp_path / "n.en", ENGLISH), text(tmp_path / "n.sw", SWAHILI)
    refused("more than one file matches it: n.fr, n.sw", tmp_path / "n.en")


@pytest.mark.parametrize(
    "body, says",
    [
        ("<tmx><body>" + unit(("en", "A"), ("sw", "B")), "not a readable TMX file after unit 1"),
        ('<!DOCTYPE tmx [<!ENTITY a "b">]><tmx><body/></tmx>', "declares the entity 'a', which is not allowed"),
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


def test_lang_and_paths_are_made_canonical():
    assert ParallelSource("x", lang="swh_Latn").lang == "sw"
    with pytest.raises(UserError, match="none given"):
        load_parallel([])


def test_seen_knows_what_it_saw_across_merges(monkeypatch):
    seen = Seen()
    assert all(seen.add(str(number), "x") for number in range(120_000))
    assert not any(seen.add(str(number), "x") for number in range(0, 120_000, 977))
    assert seen.add("0", "y")


MEMORY = """
import resource, sys
from cctuning.data import load_parallel
load_parallel(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset, report = load_parallel(sys.argv[1])
print(len(dataset), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_flat(tmp_path):
    """A hundred thousand pairs, 20 MB of text, cost far less than themselves."""
    many = [
        (f"{number} {PAIRS[number % 2][0]} {PAIRS[3][0]}", f"{number} {PAIRS[number % 2][1]} {PAIRS[3][1]}")
        for number in range(100_000)
    ]
    large = text(tmp_path / "large.en-sw.tsv", [f"{en}\t{sw}" for sw, en in many])
    small = text(tmp_path / "small.en-sw.tsv", [f"{en}\t{sw}" for sw, en in many[:500]])
    ran = subprocess.run([sys.executable, "-c", MEMORY, large, small], capture_output=True, text=True, check=True)
    count, grown = map(int, ran.stdout.split())
    assert count == 100_000 and grown < 12_000  # KiB
    assert Path(large).stat().st_size > 20_000_000


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set CC_TUNING_DATA")
@pytest.mark.parametrize("folder, count", [("tico19", 20), ("tatoeba", 20)])
def test_real_text_is_read_whole(folder, count):
    dataset, report = one(DATA / "parallel" / folder)
    assert len(report.languages) == count and not report.skipped
    assert len(dataset) > 60_000 and report.sources[0].duplicates < 20


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
