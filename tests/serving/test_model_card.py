"""Model cards of exports: what they take from records, results and the base's own card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cctuning.model.loading import load
from cctuning.serving.exporting import export
from cctuning.serving.model_card import base_licence
from cctuning.training.card import CITATION
from tests.cli.world import done, records, write_jsonl, write_model
from tests.serving.world import edit_json, make


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run"), chat=True, tune="lora", seed=7)


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
    assert CITATION in card
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


def test_places_and_secrets_of_the_run_stay_at_home(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    with (copy / "config.yaml").open("a") as file:
        file.write("hub_token: hf_secret\nchat_template_path: /home/me/templates/mine.jinja\n")
    export(str(copy), "merged", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "hf_secret" not in card and "/home/me" not in card and "chat_template_path: mine.jinja" in card


def test_the_card_of_a_pack_has_no_empty_counts_of_rows(tmp_path):
    base = write_model(tmp_path / "base")
    text = [{"text": row["prompt"], "text_en": row["prompt_en"], "lang": "sw"} for row in records(40)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [line for line in text if line["text_en"]])
    small = ("--max_steps", 2, "--use_cpu", True, "--report_to", "none", "--layers", 0)
    done("align", base, "--parallel", pairs, "--output_dir", tmp_path / "pack", *small)
    export(str(tmp_path / "pack"), "merged", tmp_path / "out")
    data = (tmp_path / "out" / "README.md").read_text().split("## Data")[1].split("## Licence")[0]
    assert "0 rows" not in data and "30 pairs of parallel text without responses: Swahili (`sw`) 30." in data
    assert "\n.\n" not in data and "\n\n\n" not in data
