"""Model cards of exports: what they take from records, results and the base's own card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cctuning.evaluation.saved_results import model_hash
from cctuning.model.loading import load
from cctuning.serving.exporting import export
from cctuning.serving.model_card import base_licence, row_licences
from cctuning.training.card import CITATION
from tests.cli.world import refused
from tests.serving.world import edit_json, make


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run"), chat=True, tune="lora", seed=7)


def results(folder, mark, name="runs/sw", **changes):
    """A directory as `cctuning evaluate` leaves it: two items of one task."""
    task = {
        "benchmark": "XCOPA",
        "language": "sw",
        "version": 1.0,
        "items": 2,
        "metric": "acc",
        "chance": 0.5,
        "metrics": {"acc": {"value": 0.5, "stderr": 0.354}},
    }
    record = {
        "format": 1,
        "status": "finished",
        "model": {"name": name, "fingerprint": mark},
        "settings": {"suite": "source", "limit": 2, "mode": "student"},
        "versions": {"lm_eval": "0.4.13"},
        "planned": ["xcopa_sw"],
        "tasks": {"xcopa_sw": task},
    }
    (folder / "samples").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record | changes))
    lines = [{"id": i, "hash": "h", "prompt_hash": "p", "metrics": {"acc": float(i)}} for i in range(2)]
    (folder / "samples" / "xcopa_sw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def snippet(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_the_card_says_what_the_records_say(format, run, tmp_path):
    export(str(run), format, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    told = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert told["language"] == ["qaa", "en"] and "cc-tuning" in told["tags"]
    assert told["library_name"] == ("peft" if format == "lora" else "transformers")
    assert "gated connection" in card and "| transform_rank | 16 |" in card and "seed: 7" in card
    assert "24 rows: 21 with a response, 3 for the alignment only" in card and "`qaa` 18" in card
    print_ = json.loads((run / "run.json").read_text())["data"]["sources"][0]["fingerprints"]
    assert all(value in card for value in print_.values())
    assert "No results were given for this card." in card and CITATION in card
    assert str(run.parent) not in card  # no path of this machine


@pytest.mark.parametrize("options, told", [({"max_steps": 2}, " 2 steps,"), ({"max_steps": -1}, " 2 epochs,")])
def test_the_card_of_a_run_says_how_long_it_was_trained(options, told, tmp_path):
    card = (make(tmp_path, tune="lora", num_train_epochs=2, **options) / "model" / "README.md").read_text()
    assert told in card and card.count("steps,") + card.count("epochs,") == 1


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_the_code_on_the_card_answers_as_the_run_does(format, run, tmp_path, capsys, monkeypatch):
    from cctuning.serving.answering import Answerer

    export(str(run), format, tmp_path / "out")
    code = snippet((tmp_path / "out" / "README.md").read_text()).replace("…", "x1 x2").replace("=256", "=8")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code.replace("THE BASE", str(run.parent / "base")), {})
    assert capsys.readouterr().out.strip() == Answerer(load(str(run)), max_new_tokens=8)(["x1 x2"])[0]


def test_figures_are_copied_with_n_and_error_and_are_this_models_only_where_its_weights_were_scored(run, tmp_path):
    own = results(tmp_path / "own", model_hash(load(str(run))))
    other = results(tmp_path / "other", "0" * 32, name="/somewhere/vanilla")
    export(str(run), "merged", tmp_path / "out", results=[str(own), str(other)])
    card = (tmp_path / "out" / "README.md").read_text()
    first, second = card.split("## Results")[1].split("## Licence")[0].split("### ")[1:]
    assert first.startswith("This model\n") and second.startswith("Another model: vanilla\n")
    assert "| XCOPA | sw | accuracy | 2 | 50.0 ± 35.4 | 50.0 |" in first and "/somewhere" not in card
    assert "limit 2" in first and "lm_eval version 0.4.13" in first


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_an_export_that_was_scored_itself_is_known_again(format, run, tmp_path):
    export(str(run), format, tmp_path / "first")
    own = results(tmp_path / "own", model_hash(load(str(tmp_path / "first"))))
    export(str(run), format, tmp_path / "out", results=[str(own)])
    assert "### This model\n" in (tmp_path / "out" / "README.md").read_text()


def test_unfinished_results_are_refused(run, tmp_path, capsys):
    half = results(tmp_path / "half", "0", status="stopped", planned=["xcopa_sw", "xcopa_th"])
    out = tmp_path / "out"
    said = refused(capsys, "export", run, "--format", "merged", "--output", out, "--results", half)
    assert "not finished, without xcopa_th" in said and not out.exists()


def test_the_bases_licence_is_named_as_its_card_names_it(run, tmp_path):
    base = Path(shutil.copytree(run.parent / "base", tmp_path / "base"))
    assert base_licence(str(base)) == base_licence(None) == {}
    head = "license: other\nlicense_name: llama3.1\nlicense_link: https://example.org/LICENSE\n"
    (base / "README.md").write_text(f"---\n{head}---\n\n# A base\n")
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    edit_json(copy / "model" / "adapter_config.json", base_model_name_or_path=str(base))
    export(str(copy), "merged", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "licence of the base model applies to this model: llama3.1 (other) (https://example.org/LICENSE)" in card
    assert all(line in card.split("---")[1] for line in head.splitlines())
    export(str(run), "merged", tmp_path / "none")
    assert "its card does not name one: look it up" in (tmp_path / "none" / "README.md").read_text()
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_licence(str(base)) == {}


def test_licences_of_rows_come_from_the_card_that_lies_beside_them(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    record = json.loads((copy / "run.json").read_text())
    source = record["data"]["sources"][0]
    rows = Path(shutil.copy(source["path"], tmp_path / "rows.jsonl"))
    (mark,) = source["fingerprints"].values()
    source |= {"path": str(rows), "fingerprints": {str(rows): mark}}
    (copy / "run.json").write_text(json.dumps(record))
    card = {
        "sources": [{"path": "org/set", "licence": "CC BY 4.0"}, {"path": "more.jsonl"}],
        "files": {"rows.jsonl": mark},
    }
    (tmp_path / "card.json").write_text(json.dumps(card))
    export(str(copy), "merged", tmp_path / "out")
    assert "| org/set: CC BY 4.0; more.jsonl: not given |" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "card.json").write_text(json.dumps({**card, "files": {"rows.jsonl": "sha256:of-other-rows"}}))
    assert row_licences(str(rows), [mark]) == []
    (tmp_path / "card.json").write_text("half of a")
    assert row_licences(str(rows), [mark]) == []


def test_places_and_secrets_of_the_run_stay_at_home(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    with (copy / "config.yaml").open("a") as file:
        file.write("hub_token: hf_secret\nchat_template_path: /home/me/templates/mine.jinja\n")
    export(str(copy), "merged", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "hf_secret" not in card and "/home/me" not in card and "chat_template_path: mine.jinja" in card
