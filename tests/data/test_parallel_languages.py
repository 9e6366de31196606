"""Which language a side of parallel text is in: by names of columns and files, by codes, by content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from cctuning.data import ParallelSource, load_parallel
from cctuning.data.parallel.filenames import in_name, named_by
from cctuning.errors import UserError
from cctuning.languages import canonical_or_none, matching
from tests.data import parallel_files as files
from tests.data.parallel_files import CHINESE, ENGLISH, PAIRS, SWAHILI, one, pairs, records, refused, text

INDONESIAN = ("Selamat pagi.", "Di mana pasar?", "Rumah", "Air", "Dua", "Terima kasih.")


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_columns_with_names_of_languages_in_themselves(ending, tmp_path):
    path = tmp_path / f"pairs.{ending}"
    rows = [("English", "Kiswahili", "español (México)"), ("Good morning.", "Habari za asubuhi.", "Buenos días.")]
    rows.append(("Where is the market?", "Soko liko wapi?", "¿Dónde está el mercado?"))
    if ending == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:]))
    else:
        path.write_text("".join(("\t" if ending == "tsv" else ",").join(row) + "\n" for row in rows))
    dataset, _ = load_parallel([str(path)])
    assert dataset["lang"] == ["sw", "es-MX"] * 2 and set(dataset["reference"]) == {row[0] for row in rows[1:]}
    assert set(load_parallel([{"path": str(path), "lang": "Kiswahili"}])[0]["lang"]) == {"sw"}


@pytest.mark.parametrize("ids", [range(6), [f"row-{n}" for n in range(6)], [f"a9{n}/x" for n in range(6)]])
@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "parquet"])
@pytest.mark.parametrize("lang", [None, "sw"])
def test_a_column_of_ids_is_not_indonesian(lang, ending, ids, tmp_path):
    rows = [{"id": n, "en": en, "sw": sw, "pos": "noun"} for n, (sw, en) in zip(ids, PAIRS, strict=True)]
    path = table(tmp_path / f"pairs.{ending}", rows)
    assert pairs(load_parallel([{"path": path, "lang": lang} if lang else path])[0]) == PAIRS
    real = [{"id": text, "en": en, "sw": sw} for (sw, en), text in zip(PAIRS, INDONESIAN, strict=True)]
    found, _ = load_parallel([table(tmp_path / f"real.{ending}", real)])
    assert {*zip(found["lang"], found["text"], strict=True)} >= {("id", text) for text in INDONESIAN}


def table(path: Path, rows: list[dict[str, object]]) -> str:
    """Rows as a file in the format of its ending."""
    if path.suffix == ".jsonl":
        return records(path, rows)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        cells = [[*rows[0]], *(map(str, row.values()) for row in rows)]
        Dataset.from_list(rows).to_csv(path) if path.suffix == ".csv" else text(path, map("\t".join, cells))
    return str(path)


@pytest.mark.parametrize(
    "names",
    [
        ("source", "src_lang", "target", "tgt_lang"),
        ("source_text", "source_lang", "target_text", "target_lang"),
        ("src", "src_lang", "tgt", "tgt_lang"),
        ("sourceString", "sourceLang", "targetString", "targetLang"),
        ("sentence1", "sentence1_language", "sentence2", "sentence2_language"),
    ],
)
def test_two_texts_each_with_a_column_of_its_language(names, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [dict(zip(names, ("Hello", "en", "Habari", "swh"), strict=True))]
    rows += [dict(zip(names, ("Moja", "sw", "One", "eng_Latn"), strict=True))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(*pair[:3],) for pair in pairs(load_parallel([str(path)])[0])] == [("Habari", "Hello"), ("Moja", "One")]


def test_a_language_known_only_from_the_text_is_noted(tmp_path):
    lines = "".join(
        f"{number}\t{reference}\t{number + 9}\t{text}\n" for number, (text, reference) in enumerate(PAIRS, 1)
    )
    for name, noted in (("pairs.tsv", True), ("pairs.en-sw.tsv", False)):
        (tmp_path / name).write_text(lines)
        dataset, report = load_parallel([str(tmp_path / name)])
        assert set(dataset["lang"]) == {"sw"}
        assert any("is taken to be Swahili (sw), by its content" in note for note in report.notes) == noted


def unlabelled(path: Path, given: list[tuple[str, str]], lang: str | None = None) -> str:
    """Pairs in a file without a column of languages, or with an empty one."""
    rows = [{"text": text, "text_en": english} | ({} if lang is None else {"lang": lang}) for text, english in given]
    if path.suffix == ".jsonl":
        return records(path, rows)
    if path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(cells) + "\n" for cells in ([*rows[0]], *(row.values() for row in rows))))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("lang", [None, ""])
@pytest.mark.parametrize("ending", [".jsonl", ".tsv", ".csv", ".parquet", ""])
def test_records_without_a_language_are_identified_as_lines_are(ending, lang, tmp_path):
    path = tmp_path / f"pairs{ending}"
    unlabelled(path, PAIRS, lang)
    dataset, report = one(path)
    assert pairs(dataset) == PAIRS and set(dataset["lang"]) == {"sw"}
    (note,) = report.notes
    assert "taken to be Swahili (sw), by its content; if not, give the source a lang: '{path: FILE" in note
    assert not one(path, lang="swh")[1].notes
    if ending not in (".jsonl", ""):  # the name says it
        (tmp_path / "named").mkdir()
        assert not one(unlabelled(tmp_path / f"named/pairs.en-sw{ending}", PAIRS, lang))[1].notes
    refused("its text is in English, the ref.*swapped", unlabelled(path, [(e, s) for s, e in PAIRS], lang))


def test_a_record_without_the_language_that_others_have_is_bad(tmp_path):
    rows = [{"text": text, "text_en": english, "lang": "sw"} for text, english in PAIRS]
    del rows[1]["lang"]
    path = records(tmp_path / "pairs.jsonl", rows)
    refused("pairs.jsonl:2: lang: no language; give the source a lang", path)
    assert one(path, bad_rows="skip")[1].pairs == 5


@pytest.mark.parametrize("ending", [".jsonl", ".tsv"])
def test_text_in_several_languages_or_in_one_that_lingua_does_not_know_is_not_guessed(ending, tmp_path):
    """lingua reads Hausa as Indonesian, but each sentence as another language."""
    hausa = [
        "Gwamnati ta bukaci mutane su zauna a gida.",
        "An tabbatar da cewa ya kamu da cutar a makon jiya.",
        "Likitoci sun ce a wanke hannu da sabulu.",
        "Ina so in tafi kasuwa gobe da safe.",
        "Yara suna wasa a gaban makaranta yanzu.",
        "Ruwan sama ya sauka jiya da dare a garinmu.",
    ]
    several = [
        *SWAHILI[:3],
        "Der Arzt hat mir gesagt, dass ich viel trinken soll.",
        "Où se trouve le marché, madame ?",
    ]
    for texts in (hausa, several):
        given = list(zip(texts, ENGLISH, strict=False))
        path = unlabelled(tmp_path / f"pairs{ending}", given)
        refused("the language of its text cannot be identified", path)
        assert pairs(one(path, lang="ha")[0]) == given


@pytest.mark.parametrize("ending", [".jsonl", ".tsv", ".parquet", ".sw.txt"])
def test_a_file_sorted_by_language_is_looked_at_to_its_end(ending, tmp_path):
    """A second language is found among texts spread over the file; with `limit`, over those that are read."""
    german = ["Der Arzt hat mir gesagt, dass ich viel trinken soll.", "Wo ist der Markt, und wann öffnet er morgen?"]
    given = [(f"{text} {number}", f"{number} {english}") for number in range(50) for text, english in PAIRS[:4]]
    given += [
        (f"{text} {number}", f"{number} x {english}")
        for number in range(25)
        for text, english in zip(german, ENGLISH, strict=False)
    ]
    more: dict = {}
    if ending == ".sw.txt":
        path = text(tmp_path / "one.txt", [said for said, _ in given])
        more = {"reference": text(tmp_path / "other.txt", [english for _, english in given])}
    else:
        path = unlabelled(tmp_path / f"pairs{ending}", given)
    refused(r"cannot be identified \(it looks like Swahili, German\); give", path, **more)
    dataset, report = one(path, limit=200, **more)
    assert set(dataset["lang"]) == {"sw"} and len(dataset) == 200 and "by its content" in report.notes[0]


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


@pytest.mark.parametrize("corpus", ["kde", "JW", "ted", "eu"])
def test_a_corpus_before_the_languages_in_a_name(corpus, tmp_path):
    path = text(tmp_path / f"{corpus}-en-sw.tsv", [f"{english}\t{swahili}" for swahili, english in PAIRS])
    dataset, report = one(path)
    assert pairs(dataset) == PAIRS and set(dataset["lang"]) == {"sw"} and not report.notes


@pytest.mark.parametrize("layout", ["tmx", "lang", "translation", "export"])
def test_a_region_is_preferred_to_another(layout, tmp_path):
    """`pt-BR` takes `pt-BR` and `pt` of a file; only where it has neither, it takes `pt-PT`, with a note."""
    for name, codes in (("both", ["pt-PT", "pt-BR", "pt"]), ("other", ["pt-PT", "pt-PT"])):
        folder = tmp_path / name
        folder.mkdir()
        sides = [(code, f"{sw} {code}", en) for code, (sw, en) in zip(codes, PAIRS, strict=False)]
        if layout == "tmx":
            units = "".join(files.unit(("en", en), (code, said)) for code, said, en in sides)
            path = text(folder / "x.tmx", [f"<tmx><body>{units}</body></tmx>"])
        elif layout == "lang":
            path = records(folder / "x.jsonl", [{"text": s, "text_en": en, "lang": code} for code, s, en in sides])
        elif layout == "translation":
            path = records(folder / "x.jsonl", [{"translation": {"en": en, code: s}} for code, s, en in sides])
        else:
            path = folder
            rows = [f"{n}\t{code}\t{s}" for n, (code, s, _) in enumerate(sides)]
            text(folder / "sentences.csv", [*rows, *(f"{n + 9}\teng\t{en}" for n, (*_, en) in enumerate(sides))])
            text(folder / "links.csv", [f"{n}\t{n + 9}" for n in range(len(sides))])
        dataset, report = one(path, lang="pt-BR")
        told = f"{path}: no text in pt-BR; pt-PT is taken."
        if name == "both":
            assert dataset["lang"][:] == ["pt-BR", "pt"] and told not in report.notes
            assert any("its text is in pt-PT; others are in pt-BR" in note for note in report.notes)
        else:
            assert dataset["lang"][:] == ["pt-PT"] * 2 and report.notes.count(told) == 1
        assert not any("taken" in note for note in one(path, lang="pt")[1].notes)


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


@pytest.mark.parametrize(
    "stem, both",
    [
        ("WikiMatrix.en-sw", ("en", "sw")),
        ("eng_Latn-swh_Latn", ("en", "sw")),
        ("pt_BR-en_US", ("pt-BR", "en-US")),
        ("ar_SA-en", ("ar-SA", "en")),
        ("kde-en-sw", ("en", "sw")),
        ("JW-en-sw", ("en", "sw")),
        ("ted-sw-en", ("sw", "en")),
        ("eu-en-sw.dev", ("en", "sw")),
        ("en-sw-eu", ("en", "sw")),
        ("eu-de-fr", ("de", "fr")),
        ("my-data", None),
    ],
)
def test_the_languages_in_a_name(stem, both):
    assert in_name(stem, "en") == both and in_name("en-pt_BR", "pt") == ("en", "pt-BR")
    assert named_by("fra", "en") == "fr" and named_by("rows", "en") is None


def test_lang_and_paths_are_made_canonical():
    assert ParallelSource("x", lang="swh_Latn").lang == "sw"
    with pytest.raises(UserError, match="none given"):
        load_parallel([])


def test_the_language_asked_for_is_taken_of_records_that_name_theirs(tmp_path):
    rows = [{"text": f"{lang} x", "text_en": f"text {lang}", "lang": lang} for lang in ("swa", "pt-BR", "de")]
    rows.append({"text": "habari", "text_en": "news"})
    path = tmp_path / "several.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset, report = load_parallel([{"path": str(path), "lang": "sw"}])
    assert dataset["text"][:] == ["swa x", "habari"] and set(dataset["lang"]) == {"sw"}
    assert any("2 records were skipped" in note and "no text in sw; it has pt-BR" in note for note in report.notes)
    assert load_parallel([{"path": str(path), "lang": "pt"}])[0]["lang"][:] == ["pt-BR", "pt"]
