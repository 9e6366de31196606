"""What `cctuning export` writes, in vLLM's server: the merged checkpoint, and the base with its LoRA.

Skipped without vLLM; `make test-vllm` installs its CPU build into an environment of its own and runs this file.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving.test_engines import PROMPTS, STEPS, World, make_world, ours

PYTHON = os.environ.get("CC_TUNING_VLLM", "")
SECONDS = 400  # for the server to start
TOLERANCE = 1e-3  # of a log-probability
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="vLLM is not installed: make test-vllm"),
]
LIGHT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("vllm"), width=128)  # vLLM wants heads of 32 dimensions or more


@contextmanager
def served(model: Path, *options: object) -> Iterator[str]:
    """The address of vLLM's server of this model, in float32."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    exact = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--port", port]
    # `vllm serve` itself asks for the metadata of a package named vllm, which the CPU build is not.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *exact, *options]
    log = model.parent / f"{port}.log"
    environment = {**os.environ, **LIGHT, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        server = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file, env=environment)
    try:
        address, until = f"http://127.0.0.1:{port}", time.time() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except OSError:
                assert server.poll() is None and time.time() < until, log.read_text()[-3000:]
                time.sleep(2)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def answer(address: str, model: str, prompt: str | list[int]) -> tuple[list[int], np.ndarray]:
    """Greedy tokens of /v1/completions, and their log-probabilities."""
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": STEPS, "temperature": 0, "logprobs": 1}
    asked |= {"ignore_eos": True, "return_token_ids": True}
    head = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/v1/completions", json.dumps(asked).encode(), head)
    ) as reply:
        choice = json.load(reply)["choices"][0]
    return choice["token_ids"], np.array(choice["logprobs"]["token_logprobs"])


def same(address: str, model: str, run: Path) -> None:
    """Every prompt's answer is the run's."""
    for ids, tokens, logits in ours(run):
        found, scores = answer(address, model, ids)
        assert found == tokens
        expected = torch.from_numpy(logits).log_softmax(-1)[range(STEPS), tokens].numpy()
        assert np.abs(scores - expected).max() <= TOLERANCE


def test_the_merged_checkpoint_answers_as_the_run_does(world: World) -> None:
    with served(world.fold) as address:
        same(address, str(world.fold), world.run)
        for prompt in PROMPTS:  # vLLM's own tokens of a text are those of training
            ids = AutoTokenizer.from_pretrained(world.fold)(prompt, add_special_tokens=False)["input_ids"]
            assert answer(address, str(world.fold), prompt)[0] == answer(address, str(world.fold), ids)[0]


def test_one_server_has_the_base_and_the_lora(world: World) -> None:
    options = ["--enable-lora", "--lora-modules", f"sw={world.lora}", "--max-lora-rank", 32]
    with served(world.base, *options) as address:
        same(address, "sw", world.run)
        base = AutoModelForCausalLM.from_pretrained(world.base).eval()
        for ids, tokens, _ in ours(world.run):
            plain = base.generate(
                torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0, len(ids) :].tolist()
            found, _ = answer(address, str(world.base), ids)
            assert found == plain != tokens
