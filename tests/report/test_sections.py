"""What pages and charts say of figures that were chosen beforehand."""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path

import pytest
from markupsafe import Markup

from cctuning.connection import ConnectionConfig
from cctuning.languages import language_name
from cctuning.report.build import base_name
from cctuning.report.charts import forest, lines
from cctuning.report.page import (
    DARK,
    LIGHT,
    PRINT,
    count,
    language_names,
    listed,
    number,
    percent,
    points,
)
from cctuning.report.results_section import answer_text, read_evaluations, results_section
from cctuning.report.runs import Run, Sizes
from cctuning.report.training_section import aligned, cost, data_section, tokens_a_second, training_section
from tests.report.world import Look, write_evaluation


def run(name="cc", path=Path("runs/cc"), metrics=(), **options):
    record = {
        "model": "base",
        "reference_language": "en",
        "steps": 4,
        "seconds": 100.0 if name == "cc" else 50.0,
        "data": {},
        "notes": [],
        "versions": {},
    }
    config = ConnectionConfig(**{"connection": "gated", **options})
    return Run(name, path, record, {}, list(metrics), config, Sizes(100, 60, 0, 1000))


def html(section) -> str:
    return " ".join(section.parts)


def test_the_alignment_says_which_pairs_it_is_of():
    own, measured = (
        run(connection="align"),
        {"before": {"found": 0.25, "error": 1.1}, "after": {"found": 0.5, "error": 0.9}},
    )
    own.record["alignment"] = {"sw": {"pairs": 32, "held_out": True, **measured}, "yo": {"pairs": 18, **measured}}
    page = " ".join(aligned(own))
    assert re.search(r">32<", page) and "18 of the training text" in page


def test_codes_of_one_name_stay_apart():
    own = run()
    own.record.update(
        data={
            "sources": [{"path": "a.jsonl"}],
            "rows": 5,
            "with_response": 5,
            "languages": {"arb": 2, "ara": 2, "th": 1},
            "skipped": [],
        },
        skipped_in_tokenisation=[],
    )
    text = Look(html(data_section([own]))).text
    assert "5 rows" in text and "Arabic (arb)" in text and "Arabic (ara)" in text


def test_gains_losses_and_english_before_and_after(tmp_path):
    none, half, most = [0] * 60, [0, 1] * 30, [1, 1, 0] * 20
    given = {
        "plain": ("p", {"en": half, "sw": none, "th": most}),
        "cc": ("c", {"en": none, "sw": most, "th": none}),
        "start": ("base", {"en": most, "sw": none, "th": none}),
    }
    named = [f"{name}={write_evaluation(tmp_path / name, *rest)}" for name, rest in given.items()]
    evaluated = read_evaluations(named, None, [run()])
    assert evaluated.base == "start"  # known by the path the run was tuned from
    text = Look(html(results_section([run("plain", connection="none"), run()], evaluated))).text
    assert "cc against plain, paper MKQA: better in 1 of 2 languages (Swahili), worse in 1 (Thai)" in text
    assert "English −50.0 [−" in text and "cc 0.0 % after 66.7 % on paper MKQA (−66.7" in text
    assert "time50 s2 min" in text
    without = read_evaluations(named[:2], None, [run()])
    assert "The evaluations do not include the base" in Look(html(results_section([run()], without))).text
    assert "cannot tell which languages improved" in Look(html(results_section([run()], None))).text


def test_an_evaluation_of_english_alone(tmp_path):
    flags = {"a": [0, 0] * 30, "b": [0, 1] * 30}
    named = [f"{name}={write_evaluation(tmp_path / name, name, {'en': own})}" for name, own in flags.items()]
    text = Look(html(results_section([run()], read_evaluations(named, None, [run()])))).text
    assert "b against a, paper MKQA: no language but English; English +50.0" in text


def test_which_of_two_choices_alike_was_chosen():
    choices = [{"choice": " is too big.", "loglikelihood": -3.0}, {"choice": " is too big.", "loglikelihood": -2.0}]
    assert answer_text(choices) == "is too big. (choice 2 of 2)"
    choices[0]["choice"] = " is too small."
    assert answer_text(choices) == "is too big."


def test_a_resumed_run_costs_what_all_its_legs_cost():
    metrics = [{"step": 40, "num_tokens": 4000.0, "total_runtime": 80.0}]
    metrics.append({"step": 60, "num_tokens": 6000.0, "total_runtime": 119.0})
    summary = {"step": 60, "train_runtime": 40.0}
    assert tokens_a_second(run(metrics=[*metrics, summary | {"total_runtime": 120.0}])) == 50  # not 150
    assert tokens_a_second(run(metrics=[{"step": 60, "num_tokens": 6000.0}, summary])) == 150  # of an older version


def test_curves_and_what_was_not_recorded():
    metrics = [{"step": step, "student_loss": 2.0 - step / 10, "grad_norm": 1.0} for step in (1, 2, 3)]
    metrics.append({"step": 3, "train_runtime": 2.0, "student_loss": 9.0})
    text = Look(html(training_section([run(metrics=metrics)]))).text
    assert "Student pass: 1.900 at the first log, 1.700 at the last." in text  # the summary is no log step
    assert "Memory was not recorded" in Look(" ".join(cost([run(metrics=metrics)]))).text
    assert "fewer than three times" not in text
    metrics[-1]["train_mem_gpu_peaked_delta"] = 3 * 2**20
    few = run(metrics=metrics[:1] + metrics[-1:])
    assert "cc logged fewer than three times" in Look(html(training_section([few]))).text
    assert "train memory gpu peaked delta, MiB3" in Look(" ".join(cost([few]))).text


def test_evaluation_rows_and_their_loss_by_language():
    metrics = [{"step": step, "eval_loss_sw": 3.0 - step % 3, "eval_loss_yo": 1.5} for step in (1, 2, 3)]
    text = Look(html(training_section([run(metrics=[{"step": 1, "student_loss": 1.0}, *metrics])]))).text
    assert "Swahili2.0001.0003.000" in text and "Yoruba1.5001.5001.500" in text
    pack = run()
    part = {"sources": [{"path": "a.tsv"}], "languages": {"sw": 3}}
    added = {
        "data": {"sources": [], "rows": 0, "with_response": 0, "languages": {}},
        "parallel": {"pairs": 3, **part},
        "eval_data": {"rows": 2, **part},
        "skipped_in_tokenisation": [],
    }
    pack.record.update(added)
    text = Look(html(data_section([pack]))).text
    assert "3 pairs of parallel text and 2 evaluation rows." in text
    assert "languagepairsevaluation rowsSwahili33" in text


def places(chart: str, colour: str) -> list[float]:
    """x of the markers of a colour."""
    return [float(x) for x in re.findall(rf'<use [^>]*x="([\d.]+)"[^>]*fill: var\(--{colour}\)', chart)]


def test_a_gain_lies_right_of_zero_and_a_loss_left():
    rows = [("up", 5, 2, 8, "better"), ("down", -5, -8, -2, "worse")]
    chart = forest("n", "d", "t", rows, "points", Markup())
    zero = float(re.search(r'<path d="M ([\d.]+) [^"]*"[^>]*stroke: var\(--ink\)', chart)[1])
    assert places(chart, "good")[0] > zero > places(chart, "bad")[0]
    assert "+5.0 [+2.0, +8.0]" in chart and "−5.0 [−8.0, −2.0]" in chart


def test_charts_with_many_and_with_no_numbers():
    wide = lines("n", "d", "t", {f"s{i}": (range(9), [i / 40] * 9) for i in range(40)}, "x", "y")
    empty = lines("n", "d", "t", {"a": ([0, 1], [math.nan, math.nan])}, "x", "y")
    flat = lines("n", "d", "t", {"a": ([3], [0.0])}, "x", "y")
    for chart in (wide, empty, flat):
        drawn = chart[: chart.index("</svg>")]
        assert "nan" not in drawn and "inf" not in drawn and 'viewBox="0 0 360 ' in drawn
    assert wide.count("<tr>") == 10


def test_the_table_of_a_long_series_is_short():
    table = lines("n", "d", "t", {"a": (range(500), range(500))}, "step", "y")
    rows = re.findall(r'<th scope="row">(\d+)</th>', table)
    assert len(rows) == 40 and rows[0] == "0" and rows[-1] == "499"


def test_titles_and_names_in_charts_are_escaped():
    chart = lines("<n>", "a & b", "<t>", {"<x>": ([1], [1.0]), "y": ([1], [2.0])}, "x", "y")
    assert "<t>" not in chart and escape("<t>") in chart and "<x>" not in chart and "<n>" not in chart
    assert "a &amp; b" in chart


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK, PRINT], ids=["light", "dark", "print"])
def test_contrast_of_text_and_marks(colours):
    for ground in ("ground", "soft"):
        for text in ("ink", "dim", "link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for mark in ("good", "bad", *(f"s{place}" for place in range(8))):
        assert contrast(colours[mark], colours["ground"]) >= 3, mark


def test_words():
    assert [language_name(code) for code in ("sw", "zh-Hant", "nonsense", "qqq")][0::2] == ["Swahili", "nonsense"]
    assert language_name("zh-Hant") == "Traditional Chinese" and language_name("pt-BR") == "Brazilian Portuguese"
    assert [language_name(code) for code in ("und", "arb", "eng")] == ["Unknown language", "Arabic", "English"]
    assert language_names(["ara", "th", "arb"]) == {"ara": "Arabic (ara)", "th": "Thai", "arb": "Arabic (arb)"}
    assert [number(x) for x in (1234, 0.171, -0.2, 0.00012, math.nan, None)] == [
        "1,234",
        "0.17",
        "−0.20",
        "0.00012",
        "–",
        "–",
    ]
    assert [points(0.0131), points(0.574, False), points(None)] == ["+1.3", "57.4", "–"]
    assert [percent(0.174), percent(0.0042)] == ["17 %", "0.4 %"]
    assert [base_name(base) for base in ("runs/pack/model", "org/tiny", "/m/base")] == ["pack/model", "tiny", "base"]
    assert listed(["a", "b", "c"], 2) == "a and 2 more" and listed([]) == "none" and count(1, "row") == "1 row"
