"""The paper's suite as the hub has it, over files of the same columns that stand in for it: no network here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
import pytest
from huggingface_hub import HfApi
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.errors import UserError
from cctuning.evaluation import row_tasks
from cctuning.evaluation.compare import compare
from cctuning.evaluation.models import Journal
from cctuning.evaluation.run import Options, evaluate, score
from cctuning.evaluation.suite_tasks import load_suite
from tests.cli.world import write_model
from tests.evaluation.data import Stub

# As the data set's card has them (github.com/huggingface/datasets, datasets/mkqa).
CODES = "ar da de en es fi fr he hu it ja ko km ms nl no pl pt ru sv th tr vi zh_cn zh_hk zh_tw"
MKQA_COLUMNS = CODES.split()
MKQA_TYPES = ["entity", "long_answer", "unanswerable", "date", "number", "number_with_unit", "short_phrase", "binary"]
SUBJECTS = {"abstract_algebra": 5, "anatomy": 3}  # the others have two rows
ROWS = 5 + 3 + 55 * 2


def question(number: int, *answers: dict[str, Any]) -> dict[str, Any]:
    """A row of MKQA whose answers are the same in every language."""
    filled = [{"entity": "", "aliases": [], "text": None, **one} for one in answers]
    return {
        "example_id": str(1000 + number),
        "queries": {language: f"{language} w{number}" for language in MKQA_COLUMNS},
        "query": f"w{number}",
        "answers": dict.fromkeys(MKQA_COLUMNS, filled),
    }


def mkqa(root: Path) -> None:
    answer = {"type": datasets.ClassLabel(names=MKQA_TYPES), "entity": datasets.Value("string")}
    answer |= {"text": datasets.Value("string"), "aliases": [datasets.Value("string")]}
    features = datasets.Features(
        {
            "example_id": datasets.Value("string"),
            "queries": dict.fromkeys(MKQA_COLUMNS, datasets.Value("string")),
            "query": datasets.Value("string"),
            "answers": {language: [answer] for language in MKQA_COLUMNS},
        }
    )
    rows = [
        question(0, {"type": "entity", "text": "w1", "aliases": ["w2 w3", "w1"]}),
        question(1, {"type": "unanswerable"}),
        question(2, {"type": "long_answer"}),
        question(3, {"type": "date", "text": "w4"}, {"type": "date", "text": "w5"}),
        question(4, {"type": "short_phrase", "text": "w6"}),
        question(5, {"type": "binary", "text": "yes"}),
    ]
    rows[4]["answers"] = {**rows[4]["answers"], "th": [{"type": "short_phrase", "entity": "", "aliases": []}]}
    rows[4]["answers"]["th"][0]["text"] = None  # not to be scored in Thai, so in no language
    rows[0]["answers"] = {**rows[0]["answers"], "zh_cn": [{**rows[0]["answers"]["en"][0], "text": "w9"}]}
    (root / "mkqa" / "train").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(root / "mkqa" / "train" / "0000.parquet")


def xlsum(root: Path) -> None:
    for name in ("english", "swahili", "chinese_simplified"):
        for split, count in (("train", 5), ("test", 3)):
            rows = [
                {"id": f"{name}-{i}", "url": "u", "title": "t", "summary": f"w{i} w8", "text": f"{name} w{i}\nw7"}
                for i in range(count)
            ]
            (root / name / split).mkdir(parents=True)
            datasets.Dataset.from_list(rows).to_parquet(root / name / split / "0000.parquet")
            datasets.Dataset.from_list(rows).to_parquet(root / name / f"xlsum-{split}.parquet")  # as the hub has too


def mmmlu(subjects: list[str], locale: str) -> datasets.DatasetDict:
    """Rows of openai/MMMLU in one locale, or with `locale` "" of cais/mmlu, subjects by turns."""
    rows = []
    for place, subject in enumerate(subjects):
        for i in range(SUBJECTS.get(subject, 2)):
            options = {letter: f"w{place} w{n}" for n, letter in enumerate("ABCD")}
            row = {"Question": f"w{place} w{i}", **options, "Answer": "ABCD"[(place + i) % 4], "Subject": subject}
            rows.append(row)
    if locale == "SW_KE":  # whose subjects are file names, in part
        rows = [{**row, "Subject": f"{row['Subject']}_test.csv_sw-KE.csv"} for row in rows]
    if not locale:
        rows = [
            {"question": row["Question"], "subject": row["Subject"], "answer": "ABCD".index(row["Answer"])}
            | {"choices": [row[letter] for letter in "ABCD"]}
            for row in rows
        ]
    made = datasets.Dataset.from_list(rows)
    return datasets.DatasetDict({"test": made, "dev": made})


def subjects() -> list[str]:
    folder = Path(lm_eval.tasks.__file__).parent / "openai-mmmlu"
    return list(json.loads((folder / "subjects.json").read_text()))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    mkqa(root / "apple" / "mkqa")
    xlsum(root / "csebuetnlp" / "xlsum")
    return root


@pytest.fixture(autouse=True)
def fake(files, monkeypatch) -> None:
    """The hub's data sets from here, through the code that would fetch them."""
    for name, pattern in row_tasks.FILES.items():
        assert pattern.startswith("hf://datasets/") and "@refs/convert/parquet/" in pattern
        here = pattern.replace("hf://datasets", str(files)).replace("@refs/convert/parquet", "")
        monkeypatch.setitem(row_tasks.FILES, name, here)
    load, every = datasets.load_dataset, subjects()

    def from_here(path, name=None, **options):
        if path in ("openai/MMMLU", "cais/mmlu"):
            return mmmlu(every, name) if path == "openai/MMMLU" else mmmlu([name], "")
        return load(path, name, **options)

    monkeypatch.setattr(lm_eval.api.task.datasets, "load_dataset", from_here)


def built(benchmark: str, *languages: str) -> dict[str, Any]:
    return {item.language: item for item in load_suite("paper", list(languages), None, [benchmark])[0]}


def docs(item) -> list[dict[str, Any]]:
    return list(item.task.eval_docs)


def test_mkqa_rows_are_questions_with_a_short_answer_in_every_language():
    items = built("MKQA", "zh", "tr")
    assert list(items) == ["en", "tr", "zh"]
    assert [item.name for item in items.values()] == ["mkqa_en_hub", "mkqa_tr_hub", "mkqa_zh_hub"]
    for language, item in items.items():  # 1 and 2 have no short answer, 4 has none in Thai
        assert [doc["id"] for doc in docs(item)] == ["1000", "1003", "1005"], language
        assert item.metric == "f1,none" and item.version == "1.0"
    assert docs(items["tr"])[0] == {"id": "1000", "prompt": "Soru: tr w0\nCevap:", "answer": ["w1", "w2 w3"]}
    assert docs(items["zh"])[0] == {"id": "1000", "prompt": "问题: zh_cn w0\n答案:", "answer": ["w9", "w2 w3", "w1"]}
    assert docs(items["en"])[1]["answer"] == ["w4", "w5"]  # every answer counts


def test_xlsum_rows_are_articles_of_the_test_split_alone():
    items = built("XLSum", "sw", "zh")
    assert [item.name for item in items.values()] == ["xlsum_en_hub", "xlsum_sw_hub", "xlsum_zh_hub"]
    for item in items.values():
        assert item.metric == "rouge_l,none" and len(docs(item)) == 3
    assert docs(items["sw"])[1] == {
        "id": "swahili-1",
        "prompt": "Makala: swahili w1\nw7\nMuhtasari:",
        "answer": "w1 w8",
    }
    assert docs(items["zh"])[0]["prompt"].startswith("文章: chinese_simplified w0")


def test_mmmlu_is_lm_evals_groups_of_57_tasks():
    items = built("MMMLU", "sw")
    assert [(item.name, item.version) for item in items.values()] == [
        ("mmlu", "2 of 1.0"),
        ("mmmlu_sw_ke", "1 of 1.0"),
    ]
    for item in items.values():
        assert len(item.tasks) == 57 and sum(len(task.eval_docs) for task in item.tasks) == ROWS
    assert {task.task_name for task in items["sw"].tasks} == {f"mmmlu_sw_ke_{one}" for one in subjects()}


def test_the_languages_are_the_papers_that_the_data_sets_have():
    assert len(row_tasks.QUESTIONS) == 13 and len(row_tasks.ARTICLES) == 19
    assert set(row_tasks.QUESTIONS) == {"zh" if one == "zh_cn" else one for one in MKQA_COLUMNS} - {
        *("da", "fi", "he", "hu", "it", "km", "ms", "nl", "no", "pl", "sv", "zh_hk", "zh_tw")
    }
    with pytest.raises(UserError, match="'xx'"):
        load_suite("paper", ["xx"], None)


def scored(item, lm, folder: Path) -> dict[str, Any]:
    record = {"tasks": {}, "model": {"name": "stub", "fingerprint": ""}, "settings": {"mode": "student"}}
    record |= {"versions": {}, "status": "stopped", "planned": []}
    (folder / "samples").mkdir(parents=True)
    score(item, Journal(lm, folder / "journal"), Options(), folder, record)
    return record["tasks"][item.name]


@pytest.mark.parametrize("benchmark", ["MKQA", "XLSum", "MMMLU"])
def test_gold_answers_get_100_and_others_none(benchmark, tmp_path):
    for language, item in built(benchmark, "sw", "zh").items():
        task = scored(item, Stub(item.task, right=True), tmp_path / language)
        assert task["metrics"][task["metric"]] == {"value": 1.0, "stderr": 0.0}, item.name
        assert task["items"] == sum(len(one.eval_docs) for one in item.tasks)
        task = scored(item, Stub(item.task, right=False), tmp_path / f"{language}-wrong")
        low, high = (0, 0) if benchmark != "MMMLU" else (0.1, 0.4)  # chance is 0.25, of 118
        assert low <= task["metrics"][task["metric"]]["value"] <= high


def test_the_best_alias_counts(tmp_path):
    item = built("MKQA", "en")["en"]

    class Alias(Stub):
        def generate_until(self, requests):
            return ["w2 w3" if request.doc["id"] == "1000" else "w4 w9" for request in requests]

    metrics = scored(item, Alias(item.task, True), tmp_path)["metrics"]
    # By hand: an alias, 1; "w4 w9" against w4 (precision 1/2, recall 1: F1 2/3); against "yes", 0.
    assert metrics["f1"]["value"] == pytest.approx((1 + 2 / 3) / 3) and metrics["em"]["value"] == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [
        write_model(root / name, max_position_embeddings=512, initializer_range=spread)
        for name, spread in (("one", 0.02), ("other", 0.5))
    ]


def test_mmmlu_figures_are_lm_evals_own_and_its_items_pair(models, tmp_path):
    """Runs of two models, each group's figure against `simple_evaluate` on the group's name, then compared."""
    options = Options(suite="paper", languages=["sw"], benchmarks=["MMMLU"])
    runs = []
    for path in models:
        record = evaluate(str(path), tmp_path / path.name, options)
        runs.append((path.name, tmp_path / path.name))
        loaded = AutoModelForCausalLM.from_pretrained(path).eval()
        lm = HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(path), batch_size=4)
        folder = Path(lm_eval.tasks.__file__).parent / "openai-mmmlu"
        manager = TaskManager(include_path=[folder], include_defaults=False)
        theirs = simple_evaluate(model=lm, tasks=["mmmlu_sw_ke"], task_manager=manager)["groups"]["mmmlu_sw_ke"]
        metrics = record["tasks"]["mmmlu_sw_ke"]["metrics"]
        assert set(metrics) == {"acc", "acc_norm"}
        for name, found in metrics.items():
            assert (found["value"], found["stderr"]) == (theirs[f"{name},none"], theirs[f"{name}_stderr,none"])
        lines = (tmp_path / path.name / "samples" / "mmmlu_sw_ke.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        assert [one["id"] for one in samples] == list(range(ROWS))
        assert len({one["task"] for one in samples}) == 57
        # Weighted by size: the mean over items, where a larger subject counts for more.
        assert metrics["acc"]["value"] == pytest.approx(sum(one["metrics"]["acc"] for one in samples) / ROWS)
    assert "| MMMLU (accuracy) |" in (tmp_path / "one" / "results.md").read_text()
    found = compare(runs, draws=1000)
    rows = {row.language: row for row in found.rows if row.kind == "language"}
    assert set(rows) == {"en", "sw"} and rows["sw"].items == ROWS
    assert rows["sw"].difference == pytest.approx(rows["sw"].value - rows["sw"].baseline)


@pytest.mark.parametrize("files", ["{tmp}/none/*.parquet", "hf://datasets/csebuetnlp/xlsum@refs/convert/parquet/x"])
def test_a_data_set_that_cannot_be_had_is_one_line(files, monkeypatch, tmp_path):
    """Files that are gone; and the hub's address while it cannot be reached, whose errors are of another kind."""

    class NoNetwork(Exception):
        pass

    def unreachable(*args, **options):
        raise NoNetwork("Name or service not known\nand more")

    monkeypatch.setattr(HfApi, "repo_info", unreachable)
    monkeypatch.setitem(row_tasks.FILES, "XLSum", files.replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError, match=r"XLSum, en: its data cannot be loaded: .*--data DIR\.$") as found:
        built("XLSum", "en")
    assert "\n" not in str(found.value)
