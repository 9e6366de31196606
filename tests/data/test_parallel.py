"""Parallel text in every layout comes out the same, and stays on disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cctuning.data import load_parallel
from cctuning.data.text import Seen
from tests.data import parallel_files as files
from tests.data.parallel_files import CHINESE, ENGLISH, PAIRS, SWAHILI, one, pairs, records, refused, text

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
    *(files.headed_tsv, files.tatoeba_by_language, files.tatoeba_from_english),
)


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


def test_tatoebas_links_in_both_directions_are_read_once(tmp_path):
    files.tatoeba_from_english(tmp_path), files.tatoeba_by_language(tmp_path)
    dataset, report = one(tmp_path)
    assert pairs(dataset) == PAIRS and report.sources[0].duplicates == 0


def test_a_tmx_with_a_namespace_and_a_unit_with_several_texts_in_a_language(tmp_path):
    coded = 'Bofya <bpt i="1">`&lt;b&gt;`</bpt>hapa<ept i="1">`&lt;/b&gt;`</ept> sasa.'
    units = files.unit(("en", "Click here now."), ("sw", coded))
    units += files.unit(("sw", "Habari."), ("en", ""), ("en", "Hello."), ("sw", "Jambo."), ("sw", ""))
    path = text(tmp_path / "x.tmx", [f'<tmx xmlns="http://www.lisa.org/tmx14"><body>{units}</body></tmx>'])
    hello = [("Habari.", "Hello."), ("Jambo.", "Hello.")]
    assert pairs(one(path)[0]) == [("Bofya hapa sasa.", "Click here now."), *hello]


@pytest.mark.parametrize("name", ["swallow.tsv", "lead.tsv"])
def test_a_quotation_mark_is_a_letter(name):
    if not (CASES / name).is_file():
        pytest.skip(f"no {CASES / name}; set CC_TUNING_DATA")
    dataset, _ = one(CASES / name)
    raw = [line.split("\t") for line in (CASES / name).read_text(encoding="utf-8").splitlines()[1:]]
    assert pairs(dataset) == [(cells[0], cells[3]) for cells in raw]


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


def test_responses_that_are_left_out_are_noted(tmp_path):
    """Not those of `cctuning pair`, which writes parallel text as rows with an empty response."""
    rows = [{"prompt": sw, "prompt_en": en, "lang": "sw", "response": None} for sw, en in PAIRS]
    assert one(records(tmp_path / "a.jsonl", rows))[1].notes == []
    rows[0]["response"] = "Ndiyo."
    assert any("responses are not used" in note for note in one(records(tmp_path / "b.jsonl", rows))[1].notes)
