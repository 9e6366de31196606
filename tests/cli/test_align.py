"""`cctuning align`, `train --parallel` and `diagnose --parallel`, as a user types them."""

from __future__ import annotations

import errno
import json
import re
import resource
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.cli.world import done, metrics, records, refused, run_json, write_jsonl, write_model, write_recipe
from tests.report.world import Look

SMALL = ("--layers", "0", "1", "--max_steps", 6, "--use_cpu", True, "--report_to", "none", "--logging_steps", 1)


def pairs(path: Path, lang: str = "qu", count: int = 40) -> Path:
    lines = [{"text": row["prompt"], "text_en": row["prompt_en"], "lang": lang} for row in records(count)]
    return write_jsonl(path, [line for line in lines if line["text_en"]])


@pytest.fixture
def base(tmp_path) -> Path:
    return write_model(tmp_path / "base")


def english(path: Path) -> Path:
    lines = [{"prompt": row["prompt"], "response": row["response"], "lang": "en"} for row in records()]
    return write_jsonl(path, [line for line in lines if line["response"]])


def test_a_pack_then_plain_sft_on_it(base, tmp_path, capsys):
    text = pairs(tmp_path / "pairs.jsonl")
    done("align", base, "--parallel", text, "--output_dir", tmp_path / "pack", *SMALL)
    said = capsys.readouterr().out
    assert "alignment: texts whose nearest reference is their own" in said and "qu" in said
    assert "cctuning train --config vanilla --model" in said
    run = run_json(tmp_path / "pack")
    assert run["status"] == "finished" and run["data"]["rows"] == 0 and run["parallel"]["languages"] == {"qu": 30}
    assert set(run["alignment"]["qu"]) == {"pairs", "held_out", "before", "after"}
    pack = tmp_path / "pack" / "model"
    AutoModelForCausalLM.from_pretrained(pack)  # a plain checkpoint
    recipe = write_recipe(
        tmp_path / "plain.yaml", connection="none", model=str(pack), data=str(english(tmp_path / "en.jsonl"))
    )
    done("train", "--config", recipe, "--output_dir", tmp_path / "sft")
    assert run_json(tmp_path / "sft")["status"] == "finished"


def test_a_pack_that_is_a_lora_is_merged_before_sft(base, tmp_path, capsys):
    text, rows = pairs(tmp_path / "pairs.jsonl"), english(tmp_path / "en.jsonl")
    done("align", base, "--parallel", text, "--tune", "lora", "--output_dir", tmp_path / "pack", *SMALL)
    said = capsys.readouterr().out
    assert (
        f"cctuning export {tmp_path / 'pack'} --format merged" in said
        and "train --config vanilla --model MERGED" in said
    )
    sft = ("--data", rows, "--connection", "none", "--tune", "full", "--output_dir", tmp_path / "sft", *SMALL[3:])
    error = refused(capsys, "train", "--model", tmp_path / "pack" / "model", *sft)
    assert "has a LoRA and not the weights of a model" in error and "--format merged" in error
    done("export", tmp_path / "pack", "--format", "merged", "--output", tmp_path / "merged")
    done("train", "--model", tmp_path / "merged", *sft)


def test_a_model_with_a_connection_is_not_trained_without_it(base, tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", records())
    run = ("--data", rows, "--connection", "gated", *SMALL[3:])
    done("train", "--model", base, *run, "--output_dir", tmp_path / "cc")
    error = refused(capsys, "train", "--model", tmp_path / "cc" / "model", *run, "--output_dir", tmp_path / "on")
    assert "has a connection beside its weights" in error


def test_english_rows_with_parallel_text_by_the_defaults(base, tmp_path):
    rows, text = english(tmp_path / "en.jsonl"), pairs(tmp_path / "pairs.jsonl")
    done("train", "--model", base, "--data", rows, "--parallel", text, "--output_dir", tmp_path / "run", *SMALL)
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert all(line["align_loss"] > 0 for line in lines)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "connection: align" in config
    done("export", tmp_path / "run", "--format", "merged", "--output", tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_an_interrupted_pack_goes_on_and_ends_as_a_whole_one(tune, base, tmp_path):
    options = ("--parallel", pairs(tmp_path / "pairs.jsonl"), *SMALL, "--save_strategy", "steps", "--save_steps", 3)
    done("align", base, *options, "--tune", tune, "--output_dir", tmp_path / "whole")
    record = tmp_path / "whole" / "run.json"
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("checkpoint-3", "config.yaml", "metrics.jsonl"):
        (tmp_path / "whole" / name).rename(cut / name)
    (cut / "run.json").write_text(record.read_text().replace('"finished"', '"running"'))
    whole = metrics_of(cut / "metrics.jsonl")
    done("align", base, *options, "--tune", tune, "--output_dir", cut, "--resume_from_checkpoint", True)
    assert metrics_of(cut / "metrics.jsonl") == whole


def metrics_of(path: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], round(line["loss"], 4)) for line in lines if "loss" in line]


def test_diagnose_says_how_far_text_is(base, tmp_path, capsys):
    done("diagnose", base, "--parallel", pairs(tmp_path / "p.jsonl"), "--output", tmp_path / "d.json")
    said = capsys.readouterr().out
    assert (
        "measuring 30 pairs in 1 languages" in said
        and "Quechua: " in said
        and "  set connection: " in said
        and "the default of" in said
    )
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["languages"] == ["qu"] and len(found["found"][0]) == len(found["layers"]) == 2
    done("diagnose", base, "--parallel", pairs(tmp_path / "few.jsonl", count=12))
    assert "Quechua: too few pairs to tell" in capsys.readouterr().out


def test_diagnose_takes_rows_with_reference_prompts_in_any_language(base, tmp_path, capsys):
    rows = [{"prompt": f"x{i}", "response": f" x{i}", "lang": "sw", "prompt_fr": f"w{i}"} for i in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    done("diagnose", base, "--parallel", data, "--reference_language", "fr")
    said = " ".join(capsys.readouterr().out.split())
    assert "right French text found among 20" in said and "English" not in said and "{" not in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--limit", "0"], "--limit: expected at least 1"),
        (["--output", "nowhere/x.json"], "there is no directory nowhere"),
        (["--output", __file__], "exists already; name a new file"),
    ],
)
def test_bad_input_of_diagnose(argv, says, base, tmp_path, capsys):
    assert says in refused(capsys, "diagnose", base, "--parallel", pairs(tmp_path / "p.jsonl"), *argv)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_diagnose_measures_a_run_too(tune, base, tmp_path, capsys):
    text = pairs(tmp_path / "pairs.jsonl")
    done("align", base, "--parallel", text, "--output_dir", tmp_path / "pack", *SMALL, "--tune", tune)
    found = []
    for model in (base, tmp_path / "pack"):
        done("diagnose", model, "--parallel", text, "--output", tmp_path / f"{model.name}.json")
        found.append(json.loads((tmp_path / f"{model.name}.json").read_text())["error"])
    assert found[0] != found[1]


def test_diagnose_tells_what_it_leaves_out_and_what_has_no_effect(tmp_path, capsys):
    base = write_model(tmp_path / "base", chat=True, max_position_embeddings=64)
    lines = [{"text": row["prompt"], "text_en": row["prompt_en"], "lang": "qu"} for row in records(40)]
    lines = [{"text": "x1 " * 70, "text_en": "w1", "lang": "qu"}, *(line for line in lines if line["text_en"])]
    text = write_jsonl(tmp_path / "p.jsonl", lines)
    done("diagnose", base, "--parallel", text)
    said = capsys.readouterr().out
    assert "measuring 31 pairs" in said and "note: 1 pairs are left out: longer than 64 tokens" in said
    assert "of 30 found" in said
    kwargs = ("--chat_template_kwargs", '{"thought": 1}')
    done("diagnose", base, "--parallel", text, *kwargs)
    assert "the chat template does not read thought: no effect" in capsys.readouterr().out
    message = refused(capsys, "diagnose", base, "--parallel", text, "--chat", "no", *kwargs)
    assert "only with the chat template, which is off" in message


def test_diagnose_takes_no_connection(base, tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", records())
    recipe = write_recipe(tmp_path / "cc.yaml", model=str(base), data=str(rows))
    done("train", "--config", recipe, "--output_dir", tmp_path / "cc", "--max_steps", 1)
    said = refused(capsys, "diagnose", tmp_path / "cc", "--parallel", pairs(tmp_path / "p.jsonl"))
    assert "has a trained connection" in said


def test_bad_input_is_one_line(base, tmp_path, capsys):
    text = pairs(tmp_path / "p.jsonl")
    run = ("--output_dir", tmp_path / "run", *SMALL)
    assert "reads parallel text only" in refused(capsys, "align", base, "--data", text, *run)
    recipe = write_recipe(tmp_path / "with.yaml", data=str(text))
    assert "reads parallel text only" in refused(capsys, "align", base, "--config", recipe, "--parallel", text, *run)
    assert "missing; name the training rows" in refused(capsys, "train", "--model", base, *run)
    assert "trains on answered rows alone" in refused(
        capsys, "align", base, "--parallel", text, "--connection", "none", *run
    )
    assert "no such file" in refused(capsys, "align", base, "--parallel", tmp_path / "none.tsv", *run)
    half = write_jsonl(tmp_path / "half.jsonl", [{"text": "x1 x2", "text_en": "", "lang": "qu"}])
    assert "half.jsonl:1" in refused(capsys, "align", base, "--parallel", half, *run)
    assert "required: --parallel" in refused(capsys, "diagnose", base)
    assert not (tmp_path / "run").exists()


def test_a_pack_is_exported_with_its_languages_on_the_card(base, tmp_path):
    text = pairs(tmp_path / "pairs.jsonl")
    done("align", base, "--parallel", text, "--output_dir", tmp_path / "pack", *SMALL, "--tune", "lora")
    done("export", tmp_path / "pack", "--format", "lora", "--output", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "30 pairs of parallel text without responses: Quechua (`qu`) 30" in card and "pairs.jsonl" in card


def test_parallel_text_that_is_evaluated_on_is_a_note(base, tmp_path, capsys):
    rows, text = english(tmp_path / "en.jsonl"), pairs(tmp_path / "pairs.jsonl")
    held = [json.loads(line) for line in text.read_text().splitlines()][:3]
    asked = [{"prompt": one["text"], "response": "x1", "prompt_en": one["text_en"], "lang": "qu"} for one in held]
    evaluated = ("--eval_data", write_jsonl(tmp_path / "eval.jsonl", asked), "--eval_strategy", "epoch")
    given = ("--data", rows, "--parallel", text, *evaluated, "--output_dir", tmp_path / "run", *SMALL)
    done("train", "--model", base, *given)
    out = " ".join(capsys.readouterr().out.split())
    assert "3 pairs of the parallel text are prompts of the evaluation rows" in out
    assert f"{text}:1 ({tmp_path / 'eval.jsonl'}:1), {text}:2 (" in out


def test_a_damaged_recording_is_made_again(base, tmp_path, monkeypatch):
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    text = pairs(tmp_path / "pairs.jsonl")
    done("align", base, "--parallel", text, "--output_dir", tmp_path / "one", *SMALL)
    (file,) = (tmp_path / "cache").rglob("*.bin")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    done("align", base, "--parallel", text, "--output_dir", tmp_path / "other", *SMALL)
    assert file.read_bytes() == whole
    assert metrics_of(tmp_path / "one" / "metrics.jsonl") == metrics_of(tmp_path / "other" / "metrics.jsonl")


@pytest.mark.parametrize("saving", [(), ("--save_strategy", "steps", "--save_steps", 2)], ids=["model", "checkpoint"])
def test_a_full_disk_is_one_line_and_leaves_nothing_incomplete(saving, base, tmp_path, capsys):
    """Files above 60 kB cannot be written, which is less than the model."""
    text, run = pairs(tmp_path / "pairs.jsonl"), tmp_path / "run"
    argv = ("align", base, "--parallel", text, "--output_dir", run, *SMALL, *saving)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        said = refused(capsys, *argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"output_dir: {run} cannot be written to" in said and "--resume_from_checkpoint true" in said
    assert not list(run.glob("checkpoint-*")) and not list(run.glob("*model*")) and not list(run.glob(".*"))
    assert run_json(run)["status"] == "stopped"
    done(*argv, "--resume_from_checkpoint", True)
    assert run_json(run)["status"] == "finished"


def test_a_full_disk_before_training_is_one_line(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    argv = ("align", base, "--parallel", pairs(tmp_path / "pairs.jsonl"), "--output_dir", tmp_path / "run", *SMALL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        said = refused(capsys, *argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the tokenised rows cannot be written" in said and "HF_DATASETS_CACHE" in said

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    said = refused(capsys, *argv)
    assert "the recording of the references cannot be written" in said and "CC_TUNING_CACHE" in said
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] and not (tmp_path / "run").exists()


def test_a_report_on_english_rows_with_parallel_text(base, tmp_path):
    """The parallel text is counted, also where there are no rows."""
    rows, text = english(tmp_path / "en.jsonl"), pairs(tmp_path / "pairs.jsonl")
    done("train", "--model", base, "--data", rows, "--parallel", text, "--output_dir", tmp_path / "run", *SMALL)
    done("align", base, "--parallel", text, "--output_dir", tmp_path / "pack", *SMALL)
    done("report", tmp_path / "run", tmp_path / "pack", "--output", tmp_path / "page.html")
    said = " ".join(Look((tmp_path / "page.html").read_text(encoding="utf-8")).text.split())
    assert re.search(r"run: \d+ rows \(\d+ with a response\) and 30 pairs of parallel text\.", said)
    assert "pack: 30 pairs of parallel text." in said
