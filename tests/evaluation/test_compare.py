"""`cctuning compare` on made runs: figures, seeds, notes, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cctuning.cli.compare import main
from cctuning.errors import UserError
from cctuning.evaluation.compare import compare
from cctuning.evaluation.saved_results import parse_runs

ITEMS = 120


def right(level: float, draw: int, language: str) -> list[float]:
    """0/1 values: an item is right where its difficulty (the same for all runs) lies below the level, with noise."""
    hard = np.random.default_rng(sum(language.encode())).random(ITEMS)
    return [float(one) for one in hard + 0.1 * np.random.default_rng(draw).normal(size=ITEMS) < level]


def made(path: Path, levels: dict[str, float], draw: int = 0, **other) -> Path:
    """A run directory with one task for each `benchmark_language` of `levels`."""
    (path / "samples").mkdir(parents=True)
    tasks = {}
    for name, level in levels.items():
        benchmark, language = name.split("_")
        values = right(level, draw, language)
        lines = [
            {
                "id": i,
                "hash": f"{name}{i}",
                "prompt": "?",
                "prompt_hash": f"p{i}",
                "target": 0,
                "response": [],
                "metrics": {"acc": value, "acc_norm": 0.0},
            }
            for i, value in enumerate(values)
        ]
        (path / "samples" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks[name] = {
            "benchmark": benchmark,
            "language": language,
            "version": "1.0",
            "items": ITEMS,
            "metric": "acc",
            "chance": 0.5,
            "metrics": {"acc": {"value": sum(values) / ITEMS, "stderr": 0.04}},
        }
    record = {
        "format": 1,
        "status": "finished",
        "model": {"name": path.name, "fingerprint": f"{path}", "training_seed": draw, "group": None},
        "settings": {"suite": "source", "chat": False, "limit": None, "seed": 0, "mode": "student"},
        "versions": {"torch": "2"},
        "tasks": tasks,
    }
    record.update(other)
    (path / "results.json").write_text(json.dumps(record))
    return path


def edit(path: Path, change) -> None:
    record = json.loads((path / "results.json").read_text())
    change(record)
    (path / "results.json").write_text(json.dumps(record))


def edit_line(path: Path, task: str, change, number: int = 3) -> None:
    file = path / "samples" / f"{task}.jsonl"
    lines = file.read_text().splitlines()
    sample = json.loads(lines[number - 1])
    change(sample)
    lines[number - 1] = json.dumps(sample)
    file.write_text("\n".join(lines) + "\n")


LOW = {"XCOPA_en": 0.7, "XCOPA_sw": 0.4, "XCOPA_th": 0.5, "XNLI_sw": 0.6}
HIGH = {"XCOPA_en": 0.7, "XCOPA_sw": 0.8, "XCOPA_th": 0.5, "XNLI_sw": 0.3}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return made(tmp_path / "base", LOW, 1), made(tmp_path / "ours", HIGH, 2)


def run(*paths: Path, **options):
    return compare(parse_runs([str(path) for path in paths]), draws=1000, **options)


def test_end_to_end(pair, tmp_path, capsys):
    main([*map(str, pair), "--output", str(tmp_path / "out"), "--draws", "1000"])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert printed.splitlines()[-3:] == record["summary"]
    xcopa, xnli = record["summary"][:2]
    assert xcopa.startswith(
        "ours against base, XCOPA: better in 1 of 2 languages (Swahili), worse in 0, not distinguishable in 1; mean +"
    )
    assert "]: better; English " in xcopa and xcopa.endswith("]: not distinguishable.")
    assert "XNLI: better in 0 of 1 languages, worse in 1 (Swahili), not distinguishable in 0; mean -" in xnli
    assert xnli.endswith("]: worse; English -: not measured.")
    assert "overall without English" in printed.splitlines()[-1]
    rows = {(row["kind"], row["benchmark"], row["language"]): row for row in record["rows"]}
    assert list(rows) == [
        ("language", "XCOPA", "en"),
        ("language", "XCOPA", "sw"),
        ("language", "XCOPA", "th"),
        ("mean", "XCOPA", None),
        ("language", "XNLI", "en"),
        ("language", "XNLI", "sw"),
        ("mean", "XNLI", None),
        ("overall", None, None),
    ]
    swahili = rows["language", "XCOPA", "sw"]
    means = [np.mean(right(levels["XCOPA_sw"], draw, "sw")) for levels, draw in ((LOW, 1), (HIGH, 2))]
    assert [swahili["baseline"], swahili["value"]] == pytest.approx(means)
    assert swahili["low"] < swahili["difference"] < swahili["high"]
    assert swahili["p_adjusted"] == pytest.approx(3 * swahili["p"])  # the smallest of three
    assert swahili["seed_low"] is None
    assert rows["language", "XNLI", "en"]["difference"] is None
    cells = [rows["language", "XCOPA", one]["difference"] for one in ("sw", "th")]
    assert rows["mean", "XCOPA", None]["difference"] == pytest.approx(np.mean(cells))
    cells.append(rows["language", "XNLI", "sw"]["difference"])
    assert rows["overall", None, None]["difference"] == pytest.approx(np.mean(cells))
    assert rows["overall", None, None]["languages"] == 3
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert all(line in text for line in record["summary"])
    assert text.count("| not measured |") == 1


def test_same_figures_each_time_and_a_baseline_by_name(pair):
    found = run(*pair, baseline="ours")
    assert found == run(*pair, baseline="ours")
    assert found.baseline == "ours"
    assert run(*pair).rows[1].difference == pytest.approx(-found.rows[1].difference)


def test_seeds_are_averaged_by_item_and_give_an_interval_of_their_own(tmp_path):
    runs = [("base", made(tmp_path / f"b{i}", LOW, i)) for i in range(3)]
    runs += [("ours", made(tmp_path / f"o{i}", HIGH, 10 + i)) for i in range(3)]
    found = compare(runs, draws=1000)
    row = found.rows[1]
    gains = [np.mean(right(0.8, 10 + i, "sw")) - np.mean(right(0.4, i, "sw")) for i in range(3)]
    assert row.difference == pytest.approx(np.mean(gains))
    half = 4.303 * np.std(gains, ddof=1) / 3**0.5  # t(0.975, 2)
    assert (row.seed_low, row.seed_high) == pytest.approx((np.mean(gains) - half, np.mean(gains) + half), abs=1e-3)
    assert row.items == ITEMS
    assert any("paired in the order given" in note for note in found.notes)
    unequal = compare(runs[:-1], draws=1000)
    assert unequal.rows[1].seed_low is None
    assert any("no seed-level interval for ours: 2 seeds, and base has 3" in note for note in unequal.notes)


def test_a_plain_base_beside_seeds_and_runs_that_are_no_seeds(tmp_path):
    """A base was not trained: it is no single seed, but gives no interval over seeds either."""
    base = made(tmp_path / "base", LOW, 1)
    edit(base, lambda record: record["model"].update(training_seed=None))
    runs = [("base", base), *(("ours", made(tmp_path / f"o{i}", HIGH, i)) for i in (7, 8))]
    notes = compare(runs, draws=1000).notes
    assert "no seed-level interval for ours: 2 seeds, and base has 1." in notes
    assert not any("one training seed" in note for note in notes)
    edit(tmp_path / "o8", lambda record: record["model"].update(training_seed=7))
    assert any("ours: its runs have the training seeds [7, 7]" in note for note in compare(runs, draws=1000).notes)


def test_same_named_arguments_are_seeds_and_other_modes_may_be_compared(pair, tmp_path, capsys):
    edit(pair[1], lambda record: record["settings"].update(mode="bypass"))
    third = made(tmp_path / "elsewhere", LOW, 3)
    main([f"a={pair[0]}", f"a={third}", f"b={pair[1]}", "--baseline", "b", "--draws", "1000"])
    printed = capsys.readouterr().out
    assert "a against b" in printed
    assert "note: modes differ: a student, b bypass." in printed


def test_tasks_that_not_all_have_are_left_out_and_told(pair, tmp_path):
    found = run(pair[0], made(tmp_path / "less", {"XCOPA_sw": 0.4, "XCOPA_xx": 0.4}))
    assert (found.rows[0].language, found.rows[0].verdict) == ("en", "not measured")
    assert {note.split(" left out")[0] for note in found.notes if "left out" in note} == {
        "task XCOPA_en",
        "task XCOPA_th",
        "task XNLI_sw",
        "task XCOPA_xx",
    }
    with pytest.raises(UserError, match="no task in common"):
        run(pair[0], made(tmp_path / "other", {"XNLI_th": 0.4}))


@pytest.mark.parametrize(("task", "mixed"), [("XCOPA_en", False), ("XNLI_sw", True)])
def test_metrics_mix_in_the_overall_mean_alone(task, mixed, pair):
    """Which leaves the reference language out."""
    for path in pair:
        edit(
            path,
            lambda record: record["tasks"][task].update(
                metric="acc_norm", metrics=record["tasks"][task]["metrics"] | {"acc_norm": {"value": 0.0}}
            ),
        )
    told = [note for note in run(*pair).notes if "mixes metrics" in note]
    assert bool(told) == mixed


def test_english_alone_and_three_systems(tmp_path):
    runs = [made(tmp_path / name, {"XCOPA_en": 0.5}, draw) for draw, name in enumerate("abc")]
    found = run(*runs)
    assert [line.split(":")[0] for line in found.summary] == ["b against a, XCOPA", "c against a, XCOPA"]
    assert "no language but English" in found.summary[0]


def set_task(key: str, value):
    return lambda record: record["tasks"]["XCOPA_sw"].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_task("version", "2.0"), "task XCOPA_sw: version differs: 1.0 in .*base, 2.0 in .*ours"),
        (set_task("metric", "acc_norm"), "main metric differs: acc in .*acc_norm in"),
        (set_task("items", 7), "120 items, and results.json counts 7"),
        (lambda record: record["settings"].update(chat=True), "chat setting differs: False in .*True in"),
        (
            lambda record: record.update(status="stopped", planned=["XCOPA_sw", "XCOPA_vi"]),
            "not finished, without XCOPA_vi; give the same",
        ),
        (lambda record: record.update(format=2), "format 2, and this version reads 1"),
        (lambda record: record.pop("format"), "format None, and this"),
        (lambda record: record.pop("model"), "not results of `cctuning evaluate`"),
        (lambda record: record["tasks"].update(gone=record["tasks"]["XCOPA_sw"]), r"gone\.jsonl: no such file"),
    ],
)
def test_refused_by_results(pair, change, message):
    edit(pair[1], change)
    with pytest.raises(UserError, match=message):
        run(*pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sample: sample.update(hash="x"), "task XCOPA_sw: item 2 differs: XCOPA_sw2 in .*base, x in"),
        (lambda sample: sample.update(id=999), "item 2 differs: XCOPA_sw2 in .*, no such item in"),
        (lambda sample: sample.update(prompt_hash="x"), "task XCOPA_sw: prompt of item 2 differs"),
        (lambda sample: sample.update(id=0), r"XCOPA_sw\.jsonl: 119 items, and results.json counts 120"),
        (lambda sample: sample.update(id="x"), "line 3: not a sample .*'x'"),
        (lambda sample: sample.pop("hash"), "line 3: not a sample .*'hash'"),
        (lambda sample: sample["metrics"].pop("acc"), "line 3: not a sample .*'acc'"),
        (lambda sample: sample["metrics"].update(acc=float("nan")), "line 3: .*acc: nan is not between"),
        (lambda sample: sample["metrics"].update(acc=42), "line 3: .*acc: 42 is not between"),
    ],
)
def test_refused_by_samples(pair, change, message):
    edit_line(pair[1], "XCOPA_sw", change)
    with pytest.raises(UserError, match=message):
        run(*pair)


def test_missing_and_broken_files(pair, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/results\.json: no such file"):
        run(pair[0], tmp_path / "nowhere")
    with (pair[1] / "samples" / "XCOPA_th.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"XCOPA_th\.jsonl, line 121: not a sample"):
        run(*pair)
    (pair[1] / "results.json").write_text("{\n!")
    with pytest.raises(UserError, match=r"results\.json: cannot be read .*line 2"):
        run(*pair)


def test_seeds_must_be_of_one_mode_and_not_the_same_run(pair, tmp_path):
    other = made(tmp_path / "other", LOW, 4)
    edit(other, lambda record: record["settings"].update(mode="bypass"))
    with pytest.raises(UserError, match=r"base: .* has mode student and .* has bypass"):
        compare([("base", pair[0]), ("base", other), ("ours", pair[1])])
    with pytest.raises(UserError, match="hold the same weights"):
        compare([("base", pair[0]), ("base", pair[0]), ("ours", pair[1])])


def test_refused_arguments(pair, tmp_path):
    with pytest.raises(UserError, match="two or more systems"):
        run(pair[0])
    with pytest.raises(UserError, match="--baseline other: none of the runs; expected one of base, ours"):
        run(*pair, baseline="other")
    with pytest.raises(UserError, match="--draws 5: expected at least 1000"):
        compare([("a", pair[0]), ("b", pair[1])], draws=5)
    with pytest.raises(UserError, match="both would be called 'base'"):
        parse_runs([str(pair[0]), str(tmp_path / "x" / "base")])
    with pytest.raises(UserError, match="both would be called 'base'"):
        parse_runs([str(pair[0]), f"base={pair[1]}"])
    with pytest.raises(UserError, match="expected DIR or NAME=DIR"):
        parse_runs([f"={pair[0]}"])
    with pytest.raises(UserError, match=r"--output .*: exists already"):
        main([*map(str, pair), "--output", str(tmp_path)])
