"""A real server on loopback and a real client: `transformers serve`, asked by `openai`, answers as the run does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cctuning.model.loading import load
from cctuning.serving.answering import Answerer
from cctuning.serving.exporting import export
from cctuning.serving.routing import Router
from tests.cli.world import done
from tests.serving.world import make, make_turns

openai = pytest.importorskip("openai", reason="no openai client: pip install 'cc-tuning[serve]'")
pytest.importorskip("fastapi", reason="no server: pip install 'cc-tuning[serve]'")
PROMPTS = ("x1 x2", "x9 x4 x3", "w5 w1")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server on a free port, which is stopped when the tests are done."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu"]
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run"), chat=True, tune="lora")


def expected(path, prompts=PROMPTS):
    """What `cctuning generate` answers."""
    return Answerer(load(str(path)), max_new_tokens=8)(list(prompts))


def asked(client, model, prompt):
    messages = [{"role": "user", "content": prompt}]
    made = client.chat.completions.create(model=str(model), messages=messages, temperature=0, max_tokens=8)
    return made.choices[0].message.content.strip()


def test_a_fold_answers_as_the_run(client, run, tmp_path):
    export(str(run), "merged", tmp_path / "fold")
    assert [asked(client, tmp_path / "fold", prompt) for prompt in PROMPTS] == expected(run)


def test_english_has_the_base_and_the_rest_the_lora(client, run, tmp_path):
    """The server takes a LoRA in the directory of its base (weights and config beside it), and none by itself."""
    export(str(run), "lora", tmp_path / "lora")
    base = run.parent / "base"
    both = Path(shutil.copytree(tmp_path / "lora", tmp_path / "both"))
    for name in ("config.json", "model.safetensors"):
        (both / name).symlink_to(base / name)
    router = Router("en", base=str(base), adapter=str(both), languages=["qaa"])
    tuned, left = expected(run), expected(base)
    assert tuned != left
    for lang, answers in (("qaa", tuned), ("en", left)):
        assert [asked(client, router.model(prompt, lang), prompt) for prompt in PROMPTS] == answers, lang


def test_the_server_stops_where_the_template_ends_a_turn(client, tmp_path):
    """Its mark is not the tokenizer's eos: only generation_config.json says so."""
    (tmp_path / "turns").mkdir()
    run = make_turns(tmp_path / "turns")
    export(str(run), "merged", tmp_path / "fold")
    messages = [{"role": "user", "content": "x3"}]
    made = client.chat.completions.create(
        model=str(tmp_path / "fold"), messages=messages, temperature=0, max_tokens=20
    )
    assert (made.choices[0].message.content.strip(), made.choices[0].finish_reason) == ("x7", "stop")
    assert made.usage.completion_tokens == 2


def test_a_run_without_a_template_is_asked_plainly(client, run, tmp_path):
    config = tmp_path / "no-chat.yaml"
    config.write_text((run / "config.yaml").read_text() + "chat: false\n")
    done("train", "--config", config, "--output_dir", tmp_path / "bare")
    export(str(tmp_path / "bare"), "merged", tmp_path / "fold")
    said = []
    for prompt in PROMPTS:
        made = client.completions.create(model=str(tmp_path / "fold"), prompt=prompt, temperature=0, max_tokens=8)
        said.append(made.choices[0].text.strip())
    assert said == expected(tmp_path / "bare")
    with pytest.raises(openai.APIStatusError):  # rather than an answer to a prompt that training never saw
        asked(client, tmp_path / "fold", "x1")
