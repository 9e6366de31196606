"""Which language a model answered in, and lm-eval's tasks by name."""

from __future__ import annotations

import json

import pytest

from cctuning import UserError
from cctuning.evaluation.answer_language import answered_in, compare_shares, language_of
from cctuning.evaluation.compare import compare
from cctuning.evaluation.result_tables import results_page
from cctuning.evaluation.run import Options, evaluate
from cctuning.evaluation.user_tasks import language_in
from tests.cli.world import refused, write_jsonl, write_model

GERMAN, ENGLISH = "Die Katze schläft auf dem alten Sofa.", "The cat sleeps on the old sofa."
SWAHILI = "Mji mkuu wa Kenya ni Nairobi na uko kusini."


@pytest.mark.parametrize(
    ("text", "asked", "found"),
    [
        (GERMAN, "de", (True, "de")),
        (ENGLISH, "de", (False, "en")),
        (SWAHILI, "sw", (True, "sw")),
        (ENGLISH, "sw", (False, "en")),
        ("这条河每年春天都会泛滥", "zh", (True, "zh")),
        ("巴黎是首都", "zh", (True, "zh")),  # few letters tell a script
        ("Paris", "zh", (False, "en")),
        ("Nairobi.", "sw", None),  # and no language
        ("42", "sw", None),
        ("```\nprint('the cat sleeps')\n```", "sw", None),
    ],
)
def test_the_language_of_an_answer(text, asked, found):
    assert language_of(text, asked, "en") == found


def test_shares_of_answers_and_of_lines():
    said = [GERMAN, ENGLISH, f"{GERMAN}\n{ENGLISH}\n{GERMAN}", "Ja."]
    found = answered_in([{"response": {"said": text}} for text in said], "de", "en")
    assert (found["answers"], found["judged"], found["lines"], found["judged_lines"]) == (2 / 3, 3, 3 / 5, 5)
    assert found["found"] == {"en": 1}
    assert answered_in([{"response": [{"choice": "a"}]}], "de", "en") is None
    asked_for = [{"response": {"said": ENGLISH}, "target": text} for text in (ENGLISH, [ENGLISH], "1")]
    assert answered_in(asked_for, "de", "en") is None  # answers are labels in English
    assert answered_in([{"response": {"said": ENGLISH}, "target": [GERMAN]}], "de", "en")["answers"] == 0.0
    assert answered_in([{"response": {"said": GERMAN}}], "und", "en") is None
    told = compare_shares({"base": [{"answers": 0.5}], "cc": [{"answers": 1.0}, {"answers": 0.9}]}, "rows_de", "de")
    assert told == "rows_de: answers in German: base 50 %, cc 95 %."
    assert compare_shares({"base": [{"answers": 1.0}], "cc": [{"answers": 1.0}]}, "rows_de", "de") is None
    assert compare_shares({"base": [None], "cc": [{"answers": 1.0}]}, "rows_de", "de") is None


def test_evaluate_and_compare_say_it(tmp_path, monkeypatch):
    """With two models whose answers are given: what is scored is what they say."""
    rows = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"x{i}", "response": GERMAN, "lang": "de"} for i in (1, 2)]
    )
    model = str(write_model(tmp_path / "model"))
    for name, text in (("vanilla", ENGLISH), ("cc", GERMAN)):
        monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", lambda *a, text=text, **k: [text] * 2)
        record = evaluate(model, tmp_path / name, Options(rows=str(rows)))
    assert record["tasks"]["rows_de"]["answered_in"]["answers"] == 1.0
    assert "| rows_de | German | 100.0 ± 0.0 (2) | 100.0 (2) | - |" in results_page(record)
    with pytest.raises(UserError):
        compare([("vanilla", tmp_path / "vanilla"), ("vanilla", tmp_path / "cc")])  # one model twice
    edited = json.loads((tmp_path / "cc" / "results.json").read_text())
    edited["model"]["fingerprint"] = "another"
    (tmp_path / "cc" / "results.json").write_text(json.dumps(edited))
    notes = compare([("vanilla", tmp_path / "vanilla"), ("cc", tmp_path / "cc")], draws=1000).notes
    assert "rows_de: answers in German: vanilla 0 %, cc 100 %." in notes
    assert results_page(json.loads((tmp_path / "vanilla" / "results.json").read_text())).count("English 2") == 1


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("global_mmlu_sw", "sw"),
        ("belebele_swh_Latn", "sw"),
        ("afrimgsm_direct_swa_prompt_1", "sw"),
        ("include_base_44_swahili", "sw"),
        ("global_piqa_completions_swh_latn", "sw"),
        ("mmmlu_pt_br", "pt-BR"),
        ("xnli_zh", "zh"),
        ("mmlu_pro", "und"),
        ("gsm8k_cot", "und"),
        ("hellaswag", "und"),
    ],
)
def test_the_language_in_a_tasks_name(name, language):
    assert language_in(name) == language


def test_tasks_by_name_are_those_of_the_suite(tmp_path, capsys, data_dir):
    data, model = data_dir / "benchmarks", str(write_model(tmp_path / "model", max_position_embeddings=1024))
    options = {"data": str(data), "limit": 3}
    named = evaluate(model, tmp_path / "named", Options(tasks=["mgsm_direct_sw", "xcopa_sw", "xnli_sw"], **options))
    assert [*named["tasks"]] == ["xcopa_sw", "xnli_sw", "mgsm_direct_sw"]  # what writes answers comes last
    suite = evaluate(model, tmp_path / "suite", Options(languages=["sw"], benchmarks=["XCOPA", "XNLI"], **options))
    for task in ("xcopa_sw", "xnli_sw"):
        assert named["tasks"][task]["metrics"]["acc"] == suite["tasks"][task]["metrics"]["acc"]
        assert named["tasks"][task]["language"] == "sw"
    base = ("evaluate", model, "--output", tmp_path / "other", "--tasks")
    assert "no task 'xcopa_swa'. Did you mean 'xcopa_sw'?" in refused(capsys, *base, "xcopa_swa")
    assert "used instead of a suite" in refused(capsys, *base, "xcopa_sw", "--suite", "paper")
