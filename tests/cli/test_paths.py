"""First things first: what is missing is said before anything slow, in one line; recipes run on a CPU as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from cctuning import CCConfig, CCTrainer, UserError
from cctuning.cli.options import parse
from cctuning.connection import ConnectionConfig
from cctuning.training.options import RunOptions
from tests.cli.world import records, refused, write_jsonl, write_model
from tests.conftest import tiny_llama
from tests.training.toys import tokenizer

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_a_missing_model_or_file_is_named_before_torch_is_imported(tmp_path):
    for flags, said in (
        (["--model", "./models/none", "--data", "rows.jsonl"], "model: ./models/none: no such directory."),
        (["--model", "org/name", "--data", "none.jsonl"], "none.jsonl: no such file or directory"),
        (["--config", str(RECIPES[0]), "--model", str(tmp_path)], "no config.json in it"),
    ):
        code = (
            "import sys; from cctuning.cli import main; status = main(sys.argv[1:]); "
            "sys.exit(status if 'torch' not in sys.modules else 99)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, "train", *flags], capture_output=True, text=True, cwd=tmp_path
        )
        assert found.returncode == 2, found.stderr
        assert said in found.stderr and len(found.stderr.splitlines()) == 1


def test_names_of_the_hub_are_not_taken_for_paths(tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", records())
    said = refused(
        capsys, "train", "--model", "org/none", "--data", rows, "--output_dir", tmp_path / "run", "--use_cpu"
    )
    assert "'org/none'" in said and "no such directory" not in said


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_on_a_cpu_as_they_are(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    flags = ["--config", str(recipe), "--output_dir", str(tmp_path)]
    _, _, args = parse("cctuning train", "", (RunOptions, ConnectionConfig, CCConfig), flags)
    assert not args.bf16 and args.not_here == (["bf16"] if "bf16: true" in recipe.read_text() else [])


@pytest.mark.parametrize("capable", [True, False])
def test_options_for_a_gpu_are_notes_on_a_cpu(capable, tmp_path, capsys, monkeypatch):
    from cctuning.cli import main

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": capable})
    model, rows = write_model(tmp_path / "model"), write_jsonl(tmp_path / "rows.jsonl", records())
    flags = ["--bf16", "true", "--max_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    for number, more in enumerate(([], ["--use_cpu", "true", "--activation_checkpointing", "false"])):
        run = ["--output_dir", str(tmp_path / f"r{number}")]
        assert main(["train", "--model", str(model), "--data", str(rows), *run, *flags, *more]) == 0
        said = capsys.readouterr().out
        assert ("note: bf16: off, because there is no accelerator." in said) is (not more)
        assert ("note: bf16: this CPU is faster with it; add use_cpu: true to keep it." in said) is (
            capable and not more
        )
        assert ("note: activation_checkpointing: a CPU is faster without it" in said) is (not more)


def test_streams_and_empty_sets_are_one_line(tmp_path):
    rows = [{"prompt": "x1", "response": "x2", "lang": "qaa", "prompt_en": "w1"}]
    whole = datasets.Dataset.from_list(rows)
    bad = (
        (whole.to_iterable_dataset(), r"got IterableDataset; a streamed data set has no length"),
        (whole.select([]), "it has no row"),
        (rows, "got list; make one with datasets.Dataset.from_list"),
    )
    for given, said in bad:
        for name in ("train_dataset", "eval_dataset"):
            sets = {"train_dataset": whole, name: given}
            with pytest.raises(UserError, match=rf"^{name}: .*{said}"):
                CCTrainer(tiny_llama(), CCConfig(str(tmp_path)), processing_class=tokenizer(), **sets)
    with pytest.raises(UserError, match=r"^eval_dataset \(sw\): .*it has no row"):
        sets = {"train_dataset": whole, "eval_dataset": {"sw": whole.select([])}}
        CCTrainer(tiny_llama(), CCConfig(str(tmp_path)), processing_class=tokenizer(), **sets)
