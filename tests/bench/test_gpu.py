"""bench/gpu.py from end to end on a CPU, at toy sizes, as a bare machine runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.bench.conftest import BENCH

# What such a machine may lack: with these missing the script still has to run, and to write its figures.
MISSING = ("trl", "datasets", "babel", "matplotlib", "lm_eval", "lingua", "tensorboard")
BARE = "import sys, runpy\nfor name in {missing}: sys.modules[name] = None\nsys.argv = {argv}\n" + (
    "sys.path.insert(0, {folder})\nrunpy.run_path(sys.argv[0], run_name='__main__')"
)


def run(*arguments: str, bare: bool = False) -> str:
    argv = [str(BENCH / "gpu.py"), *arguments]
    code = BARE.format(missing=MISSING, argv=argv, folder=repr(str(BENCH)))
    command = [sys.executable, *(["-c", code] if bare else argv)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_gpu_script_on_a_bare_cpu(tmp_path):
    arguments = ["--device", "cpu", "--shapes", "toy", "toy-lora", "--rounds", "1", "--output", str(tmp_path)]
    run(*arguments, bare=True)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert set(result["shapes"]) == {"toy", "toy-lora"} and result["left_out"] == []
    for shape in result["shapes"].values():
        cases = {(case["name"].split(" ", 1)[1], case["rival"]) for case in shape["cases"]}
        assert {(name, "plain") for name in ("align", "sampled", "both")} <= cases
        assert all(figures["row_tokens_per_second"] > 0 for figures in shape["figures"].values())
    assert len(result["answering"]) == 12  # folded, prompt_end, adaptive; batch 1 and 8; one token and 32
    assert result["machine"]["accelerator"] is None and result["commit"]


def test_no_section_starts_after_the_budget(tmp_path):
    run("--device", "cpu", "--shapes", "toy", "--minutes", "0", "--output", str(tmp_path))
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["left_out"] == ["toy"] and result["answering"] == []
