"""Rows nobody here wrote, paired as a person would. They lie outside the repository; `CC_TUNING_DATA` says where."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from cctuning.data import load_rows
from tests.cli.world import done, run_json, write_recipe
from tests.conftest import tiny_llama
from tests.pairing.world import run, write
from tests.training.toys import tokenizer

DATA = Path(os.environ.get("CC_TUNING_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set CC_TUNING_DATA")


def records(path):
    if not (DATA / path).exists():
        pytest.skip(f"{DATA / path} is absent")
    return [json.loads(line) for line in gzip.decompress((DATA / path).read_bytes()).splitlines()]


def loaded(tmp_path):
    """As `train` reads it, refusing what it refuses."""
    dataset, report = load_rows([str(tmp_path / "out" / "rows.jsonl")])
    assert not report.skipped
    return dataset


def test_alpaca_is_joined_back_to_its_english_by_id(tmp_path):
    rows = records("sft/alpaca/zh.jsonl.gz")
    english = [{"id": r["id"], "instruction": r["prompt_en"], "output": r["response_en"]} for r in rows]
    chinese = [{key: r[key] for key in ("id", "lang", "prompt", "response")} for r in rows]
    random.Random(1).shuffle(english)
    random.Random(2).shuffle(chinese)
    source = {
        "path": write(tmp_path / "zh.jsonl", chinese[:600]),
        "way": "join",
        "english": write(tmp_path / "en.jsonl.gz", english),
    }
    card, kept, rejects = run(tmp_path, source)
    truth = {row["id"]: row for row in rows}
    assert all(row["prompt_en"] == truth[row["id"]]["prompt_en"] for row in kept)
    assert all(row["response_en"] == truth[row["id"]]["response_en"] for row in kept)
    assert not any("join" in (reject["reason"], *reject.get("also", [])) for reject in rejects)
    assert len(kept) + len(rejects) == 600 and len(rejects) < 8  # real rows, next to none of them bad
    assert len(loaded(tmp_path)) == len(kept) == card["rows"]


def test_seven_languages_are_grouped_by_their_english(tmp_path):
    languages = ("de", "es", "fr", "ja", "ru", "sw", "zh")
    records("sft/gsm8k_questions/de.jsonl.gz")
    sources = [
        {"path": str(DATA / f"sft/gsm8k_questions/{lang}.jsonl.gz"), "way": "given", "limit": 80} for lang in languages
    ]
    card, kept, rejects = run(tmp_path, *sources)
    groups = [[row["lang"] for row in rows] for _, rows in groupby(kept, key=lambda row: row["prompt_en"])]
    assert len(groups) == card["parallels"] == len({row["prompt_en"] for row in kept})  # no group is torn
    assert Counter(map(len, groups)).most_common(1)[0][0] == 7
    assert all(len(set(group)) == len(group) for group in groups)
    assert card["rows"] + card["rejected_rows"] == 7 * 80
    assert not [row for row in kept if row["prompt"] == row["prompt_en"]]  # some rows never were translated
    assert [reject for reject in rejects if reject["row"]["prompt"] == reject["row"]["prompt_en"]]
    assert len(loaded(tmp_path)) == len(kept)


@pytest.mark.parametrize(
    "path, lang", [("parallel/tico19/ar.jsonl.gz", "ar"), ("parallel/tatoeba/tha.jsonl.gz", "th")]
)
def test_parallel_text_becomes_rows_without_answers(path, lang, tmp_path):
    records(path)
    card, kept, _ = run(tmp_path, {"path": str(DATA / path), "way": "parallel", "limit": 300, "licence": "CC0"})
    assert card["languages"] == {lang: len(kept)} and len(kept) > 290 and card["with_response"] == 0
    dataset = loaded(tmp_path)
    assert set(dataset["response"][:]) == {None} and None not in dataset["reference"][:]


def test_paired_rows_train(tmp_path):
    """A few steps of `cctuning train` on what was made, with a tiny model whose vocabulary is these rows' words."""
    records("sft/gsm8k_questions/sw.jsonl.gz")
    sources = [
        {"path": str(DATA / "sft/gsm8k_questions/sw.jsonl.gz"), "way": "given", "limit": 20},
        {"path": str(DATA / "parallel/tico19/sw.jsonl.gz"), "way": "parallel", "limit": 20},
    ]
    card, *_ = run(tmp_path, *sources)
    model = tmp_path / "model"
    tiny_llama(layers=2, max_position_embeddings=256).save_pretrained(model)
    tokenizer().save_pretrained(model)
    data = [str(tmp_path / "out" / "rows.jsonl")]
    recipe = write_recipe(tmp_path / "r.yaml", model=str(model), data=data, max_length=256, max_reference_length=256)
    done("train", "--config", recipe, "--output_dir", tmp_path / "run", "--max_steps", 3)
    told = run_json(tmp_path / "run")["data"]
    assert told["rows"] == card["rows"] and told["without_response"] == card["without_response"] > 0
