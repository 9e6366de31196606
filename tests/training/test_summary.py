"""What `train` says before it starts, that a dry run stops there, and progress in lines where there is no terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

from tests.cli.world import done, records, run_json, write_jsonl, write_model, write_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_model(folder / "base"), write_jsonl(folder / "rows.jsonl", records())


def train(world, tmp_path, *flags, **options):
    base, data = world
    given = {"model": str(base), "data": str(data), "tune": "lora", "lora_rank": 4, **options}
    done("train", "--config", write_recipe(tmp_path / "r.yaml", **given), "--output_dir", tmp_path / "run", *flags)


def test_a_dry_run_says_all_and_writes_nothing(world, tmp_path, capsys):
    train(world, tmp_path, "--dry_run", "true", max_steps=-1, num_train_epochs=9, warmup_steps=0.1)
    said = capsys.readouterr().out
    assert (
        "rows:       24 (qaa 18, en 6); 24 with a reference, 21 with an answer" in said
    )  # en: its own, by the default
    assert "steps:      54 of 4 rows, 9 epochs, warmup 6" in said
    assert re.search(r"trains:     [\d.]+ k of [\d.]+ k weights: LoRA [\d.]+ k, connection [\d.]+ k", said)
    assert re.search(r"memory:     about [\d.]+ MiB \(cpu\) before activations", said)
    assert "exports to: plain checkpoint or LoRA" in said
    assert re.search(r"time:       about .*, an estimate: 54 steps of median length at .* s, meas", said)
    assert "dry_run: nothing was trained" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml"]


def parallel(path, **counts):
    lines = [
        {"text": f"x{n % 26} x{n // 26}", "text_en": f"w{n % 26} w{n // 26}", "lang": lang}
        for lang, count in counts.items()
        for n in range(count)
    ]
    return write_jsonl(path, lines)


def test_a_dry_run_estimates_both_parts_of_a_run_that_aligns_first(world, tmp_path, capsys):
    text = parallel(tmp_path / "pairs.jsonl", qu=60)
    options = {"connection": "align", "layers": [0, 1], "max_steps": 9, "align_first": 4, "parallel_rows": 2}
    train(world, tmp_path, "--dry_run", "true", parallel=str(text), **options)
    said = capsys.readouterr().out
    number = r"([\d.e-]+)"
    times = re.search(
        rf"time:       about {number} s, an estimate: 4 steps of parallel text at {number} s, 5 steps of answered "
        rf"rows at {number} s",
        said,
    )
    whole, first, later = map(float, times.groups())
    assert whole == round(4 * first + 5 * later)
    assert "alone in the first 4 steps, then 2 beside each answered row" in said


def test_a_pack_says_pairs_as_given_and_how_many_are_drawn(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cctuning.training.recording.OTHERS", 50)
    text = parallel(tmp_path / "pairs.jsonl", qu=400, sw=16)
    options = {"connection": "align", "layers": [0, 1], "data": [], "parallel": str(text), "max_steps": -1}
    train(world, tmp_path, "--dry_run", "true", **options, num_train_epochs=1)
    said = capsys.readouterr().out
    assert "parallel:   397 pairs (qu 381, sw 16), and their 381 references as rows\n" in said
    assert "held out:   qu 19 pairs, to measure the alignment" in said and "rows:" not in said
    total, counts = re.search(r"drawn:      about (\d+) parallel rows \((.*)\) in the run", said).groups()
    each = {lang: int(count) for lang, count in (one.split() for one in counts.split(", "))}
    assert sum(each.values()) == int(total) and each["qu"] == each["en"]
    assert 4 < each["qu"] / each["sw"] < 6  # the square root of 381 / 16
    assert re.search(r"recording:  400 references \(", said) is None and "381 references (" in said
    train(world, tmp_path, "--dry_run", "true", **{**options, "max_steps": 2})
    assert re.search(r"recording:  \d+ references of \d+ of 778 rows, all that the run reads", capsys.readouterr().out)


def test_a_dry_run_records_no_references(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    train(world, tmp_path, "--dry_run", "true", connection="align", layers=[0, 1])
    said = capsys.readouterr().out
    assert re.search(
        r"recording:  24 references \(\d+ tokens, 0 MB\), to be recorded in \S+ before .*: about .* s", said
    )
    assert not (tmp_path / "cache").exists()
    train(world, tmp_path, connection="align", layers=[0, 1])
    assert list((tmp_path / "cache" / "references").glob("*/vectors.bin"))
    capsys.readouterr()
    train(world, tmp_path, "--dry_run", "true", "--output_dir", tmp_path / "other", connection="align", layers=[0, 1])
    assert re.search(r"recording:  24 references .*, recorded in \S+/cache/references/", capsys.readouterr().out)


def test_a_trial_changes_nothing(world, tmp_path, capsys):
    """A run after a trial on the same trainer is the run without one."""
    from cctuning.training import summary
    from tests.training.test_trainer import losses, trainer

    plain = trainer(tmp_path / "a")
    plain.train()
    tried = trainer(tmp_path / "b")
    assert summary.trial(tried)[0].startswith("time:       about ")
    tried.train()
    assert losses(tried) == losses(plain)


def test_what_was_said_is_what_was_done(world, tmp_path, capsys):
    train(world, tmp_path, max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=4, logging_steps=10)
    said, record = capsys.readouterr().out, run_json(tmp_path / "run")
    assert record["plan"]["steps"] == record["steps"] == 2
    assert "note: only 2 optimizer steps (24 rows, 16 per step)" in said
    assert "note: logging_steps: 10 is more than the run's 2 steps; 1 is used" in said
    assert len(re.findall(r"'loss'", said)) == 2, "each step has its line"
    assert record["plan"]["trains"]["base"] == 0 and record["plan"]["rows"] == {"qaa": 18, "en": 6}


def test_warmup_longer_than_the_run_is_told(world, tmp_path, capsys):
    train(world, tmp_path, max_steps=6, warmup_steps=5)
    assert "warmup_steps: 5 of 6 steps: the learning rate hardly reaches its value" in capsys.readouterr().out


def test_lines_in_place_of_bars():
    code = """
import sys, time
from cctuning.progress import as_lines
as_lines(every=0.2)
from tqdm.auto import tqdm
for _ in tqdm(range(10), desc="Folding", disable=None): time.sleep(0.06)
for _ in tqdm(range(3), desc="Short", disable=None): pass
for _ in tqdm(range(3), desc="Off", disable=True): time.sleep(0.3)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    lines = said.splitlines()
    assert len(lines) >= 2 and all(re.fullmatch(r"Folding: \d+ of 10, \d+ s(, about \d+ s to go)?", x) for x in lines)
    assert lines[-1].startswith("Folding: 10 of 10") and "\r" not in said and len(lines) == len({*lines})
    assert io.StringIO(said).readline()
