"""What `cctuning export` writes, in engines that are not transformers: the same tokens, and logits to their precision.

Skipped where an engine is not installed; `make test-engines` installs them and runs this file. The path is a user's:
a run, `cctuning export`, the engine's own converter. Everything is compared with the run's student pass; without its
connection the run must answer otherwise, so that an engine which lost the fold would be seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cctuning.model.loading import load
from tests.cli.world import SMALL, done, write_jsonl, write_recipe
from tests.conftest import shake

STEPS = 64
TOLERANCE = 1e-4  # fp32: seven times the largest difference seen, and logits reach 5
SPECIAL = ["<unk>", "<s>", "</s>"]
ROWS = [
    {
        "prompt": "Mji mkuu wa Kenya ni upi?",
        "response": "Nairobi.",
        "lang": "sw",
        "prompt_en": "What is Kenya's capital?",
    },
    {"prompt": "Mji mkuu wa Uganda ni upi?", "response": "Kampala.", "lang": "sw", "prompt_en": "Uganda's capital?"},
]
PROMPTS = ["Mji mkuu wa Tanzania ni upi?", "Kampala", "Ni mji gani, mkuu au mdogo?"]
Step = Callable[[list[int]], np.ndarray]  # tokens in, logits (V,) of the next one out


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as Llama 2 and Mistral have it: a kind that llama.cpp's converter knows by its form."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = [text for row in ROWS for text in row.values()] * 4
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + single, show_progress=False)
    core.train_from_iterator(texts, trainer)
    state = json.loads(core.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )


class World(NamedTuple):
    """A base, a run on it whose connection is far from the identity, and the run's exports."""

    base: Path
    run: Path
    fold: Path
    lora: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("engines"))


def make_world(folder: Path, width: int = 64) -> World:
    """Train and export in `folder`; `width`: of the base's hidden states."""
    made = World(*(folder / name for name in World._fields))
    tokenizer = llama_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # transformers' own start is so small that every answer would be one token repeated
            parameter.data.normal_(std=0.15)
    model.save_pretrained(made.base)
    tokenizer.save_pretrained(made.base)
    options = {**SMALL, "model": str(made.base), "tune": "lora", "lora_rank": 4}
    recipe = write_recipe(folder / "r.yaml", data=str(write_jsonl(folder / "rows.jsonl", ROWS * 4)), **options)
    done("train", "--config", recipe, "--output_dir", made.run)
    connected = load(str(made.run)).connected
    assert connected is not None
    shake(connected, 0.1)
    connected.save_pretrained(made.run / "model", base_trained=False)
    done("export", made.run, "--format", "merged", "--output", made.fold)
    done("export", made.run, "--format", "lora", "--output", made.lora)
    return made


def follow(step: Step, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """Greedy answer of an engine, STEPS tokens, and the logits (STEPS, V) it chose them by."""
    tokens: list[int] = []
    logits = []
    new = prompt
    for _ in range(STEPS):
        logits.append(step(new))
        new = [int(logits[-1].argmax())]
        tokens += new
    return tokens, np.stack(logits)


def ours(run: Path) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
    """Each prompt's ids, the run's own greedy answer, and its logits; without its connection it answers otherwise."""
    loaded = load(str(run))
    assert loaded.connected is not None and loaded.model.generation_config is not None
    loaded.model.generation_config.eos_token_id = None  # 64 steps, whatever they are
    options: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    for prompt in PROMPTS:
        ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        row = torch.tensor([ids])
        output = loaded.connected.generate(row, output_logits=True, return_dict_in_generate=True, **options)
        answer = output.sequences[0, len(ids) :].tolist()
        with loaded.connected.disable_adapter():
            other = loaded.connected.generate(row, **options)[0, len(ids) :].tolist()
        assert other != answer and len(answer) == STEPS
        yield ids, answer, torch.cat(output.logits).numpy()


def same(start: Callable[[], Step], run: Path) -> None:
    """Every prompt's answer is the run's, and no logit is further from it than TOLERANCE."""
    worst = 0.0
    for ids, answer, logits in ours(run):
        tokens, found = follow(start(), ids)
        assert tokens == answer
        worst = max(worst, float(np.abs(found - logits).max()))
    print(f"largest difference of a logit: {worst:.1e}, over {len(PROMPTS)} answers of {STEPS} tokens")
    assert worst <= TOLERANCE


# -- OpenVINO -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="OpenVINO is not installed: make test-engines")


class Logits(nn.Module):
    """A model as ids (1, T) in, logits (1, T, V) out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.mark.slow
def test_openvino_answers_as_the_run_does(openvino: Any, world: World) -> None:
    plain = AutoModelForCausalLM.from_pretrained(world.fold, attn_implementation="eager").eval()
    length = torch.export.Dim("length", min=2, max=256)
    program = torch.export.export(Logits(plain), (torch.ones(1, 8, dtype=torch.long),), dynamic_shapes=({1: length},))
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def start() -> Step:
        read: list[int] = []

        def step(new: list[int]) -> np.ndarray:
            read.extend(new)
            return compiled(np.array([read]))[0][0, -1]

        return step

    same(start, world.run)


# -- llama.cpp ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make test-engines")


@pytest.fixture(scope="module")
def source() -> Path:
    """llama.cpp's own source, where its converters are."""
    folder = Path(os.environ.get("LLAMA_CPP", ""))
    if not (folder / "convert_hf_to_gguf.py").is_file():
        pytest.skip("no convert_hf_to_gguf.py: set LLAMA_CPP to llama.cpp's source, or run make test-engines")
    return folder


def convert(script: Path, *arguments: object, to: Path) -> str:
    """The GGUF, in fp32, that one of llama.cpp's converters makes."""
    command = [sys.executable, script, *arguments, "--outtype", "f32", "--outfile", to]
    made = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return str(to)


@contextmanager
def opened(llama_cpp: Any, model: str, lora: str | None = None) -> Iterator[Any]:
    """A model in llama.cpp, all in fp32: its cache of keys and values is fp16 unless told."""
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    options = {"n_ctx": 256, "n_threads": 1, "verbose": False, "logits_all": True}
    with closing(llama_cpp.Llama(model, lora_path=lora, **options, **exact)) as engine:
        yield engine


def fresh(engine: Any) -> Step:
    engine.reset()

    def step(new: list[int]) -> np.ndarray:
        engine.eval(new)
        return engine.scores[engine.n_tokens - 1].copy()

    return step


@pytest.mark.slow
def test_llama_cpp_answers_as_the_run_does(llama_cpp: Any, source: Path, world: World, tmp_path: Path) -> None:
    fold = convert(source / "convert_hf_to_gguf.py", world.fold, to=tmp_path / "fold.gguf")
    tokenizer = load(str(world.run)).tokenizer
    with opened(llama_cpp, fold) as engine:
        for prompt in PROMPTS:  # the same ids too, or a server would read other prompts than those of training
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            assert engine.tokenize(prompt.encode(), add_bos=False) == ids
        same(lambda: fresh(engine), world.run)


@pytest.mark.slow
def test_llama_cpp_takes_the_lora(llama_cpp: Any, source: Path, world: World, tmp_path: Path) -> None:
    base = convert(source / "convert_hf_to_gguf.py", world.base, to=tmp_path / "base.gguf")
    script = source / "convert_lora_to_gguf.py"
    lora = convert(script, world.lora, "--base", world.base, to=tmp_path / "lora.gguf")
    with opened(llama_cpp, base, lora) as engine:
        same(lambda: fresh(engine), world.run)
