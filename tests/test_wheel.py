"""The wheel as a user gets it: built from the sdist, it trains, generates and exports without any optional extra.

`make test` unpacks the wheel and hides the packages of the extras; `make wheel` installs it into an empty environment
and names that environment's Python in CC_TUNING_WHEEL_PYTHON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cctuning.extras import EXTRAS
from tests.cli.world import records, write_jsonl, write_model, write_recipe

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("CC_TUNING_WHEEL_PYTHON")
# Runs several commands in one process: importing torch and TRL takes most of the time.
RUN = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
from cctuning.cli import main
for command in json.loads(sys.argv[2]):
    print("$", *command, flush=True)
    print("status", main(command), flush=True)
"""


def python(code: str, *arguments: str, where: Path, **env: str) -> str:
    """Run code in `where`, outside the checkout; stdout and stderr together."""
    done = subprocess.run(
        [PYTHON or sys.executable, "-c", code, *arguments],
        cwd=where,
        env={**os.environ, "COLUMNS": "120", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout: sdist first, and the wheel from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("src", "recipes"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "*.pyc")
        )
    build = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"

    def run(what: str, where: Path) -> None:
        subprocess.run([sys.executable, "-c", build, what, str(folder)], cwd=where, check=True, capture_output=True)

    run("build_sdist", source)
    shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder / "sdist")
    run("build_wheel", next((folder / "sdist").iterdir()))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which `cctuning` is the wheel."""
    if PYTHON:
        return {"PYTHONPATH": ""}
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return {"PYTHONPATH": str(folder)}


def commands(folder: Path, place: dict[str, str], *argvs: list[str]) -> list[str]:
    """Output of each command, its last line the status."""
    hidden = [] if PYTHON else sorted({module for modules in EXTRAS.values() for module in modules})
    said = python(RUN, json.dumps(hidden), json.dumps(argvs), where=folder, **place)
    parts = re.split(r"^\$ .*$\n", said, flags=re.MULTILINE)[1:]
    assert len(parts) == len(argvs), said
    return parts


def test_the_wheel_holds_the_package_with_its_recipes_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").glob("*.yaml")}
    recipes |= {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
    assert len(recipes) > 10
    assert recipes <= {name.removeprefix("cctuning/recipes/") for name in names}
    package = ROOT / "src" / "cctuning"
    files = {path.relative_to(ROOT / "src") for path in package.rglob("*") if path.is_file()}
    files = {path for path in files if path.parts[1] != "recipes" and "__pycache__" not in path.parts}
    assert {str(path) for path in files} <= set(names)  # templates and py.typed among them
    assert not [name for name in names if name.split("/")[0] in ("tests", "bench", "experiments", "src")]


def test_core_packages_train_generate_and_export(place: dict[str, str], tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", chat=True)
    data = write_jsonl(tmp_path / "rows.jsonl", records())
    recipe = write_recipe(
        tmp_path / "recipe.yaml", model=str(base), data=str(data), max_steps=2, tune="lora", lora_rank=4
    )
    shown, listed, trained, asked, merged, lora = commands(
        tmp_path,
        place,
        ["--help"],
        ["recipes"],
        ["train", "--config", str(recipe), "--output_dir", "run"],
        ["generate", "run", "--prompt", "x1 x2", "--max_new_tokens", "2"],
        ["export", "run", "--format", "merged", "--output", "fold"],
        ["export", "run", "--format", "lora", "--output", "lora"],
    )
    assert "train" in shown and "qwen3-8b-lora" in listed and "ddp" in listed
    for said in (shown, listed, trained, asked, merged, lora):
        assert said.rstrip().endswith("status 0"), said
    assert (tmp_path / "fold" / "model.safetensors").is_file() and (
        tmp_path / "lora" / "adapter_config.json"
    ).is_file()
    assert "not checked" in trained and "cc-tuning[langid]" in trained  # what is left out is said


# Command -> the start of the error, the module that is missing, and the extra that brings it.
MISSING = {
    "evaluate run --rows rows.jsonl --output out": ("cctuning evaluate", "lm_eval", "evaluate"),
    "compare one two": ("cctuning compare", "scipy", "evaluate"),
    "report run --output page.html": ("cctuning report", "scipy", "report"),
    "pair rows.jsonl --output out": ("cctuning pair", "lingua", "pair"),
    "demo": ("cctuning demo", "lm_eval", "evaluate"),
}


def test_a_missing_extra_is_one_line(place: dict[str, str], tmp_path: Path) -> None:
    outputs = commands(tmp_path, place, *(command.split() for command in MISSING))
    for said, (what, module, extra) in zip(outputs, MISSING.values(), strict=True):
        error = f"cctuning: error: {what} needs {module}, which is not installed:"
        assert said == f"{error} pip install 'cc-tuning[{extra}]'.\nstatus 2\n"
    assert not [*tmp_path.iterdir()]
