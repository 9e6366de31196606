"""What several rooms' tests share: tiny models and paired batches, all seeded, nothing from a network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory) -> None:
    """Temporary files of tests and of processes that they start are in pytest's own directory."""
    folder = tmp_path_factory.mktemp("temporary")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    os.environ.setdefault("CC_TUNING_CACHE", str(folder / "cache"))


def tiny_llama(layers: int = 3, **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        **{"max_position_embeddings": 128, **options},
    )
    return LlamaForCausalLM(config).eval()


def paired_batch(rows: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    """Rows of uneven length with uneven references; the last row is in the reference language (no reference)."""
    generator = torch.Generator().manual_seed(seed)
    width, span = 12, 7
    ids = torch.randint(3, 64, (rows, width), generator=generator)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    references = torch.randint(3, 64, (rows - 1, span), generator=generator)
    reference_mask = torch.zeros_like(references)
    for row in range(rows):
        length, prompt = width - row, 4 + row % 3
        mask[row, :length] = 1
        labels[row, prompt:length] = ids[row, prompt:length]
        if row < rows - 1:
            reference_mask[row, : span - row % 3] = 1
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": labels,
        "reference_input_ids": references * reference_mask,
        "reference_attention_mask": reference_mask,
        "reference_index": torch.tensor([*range(rows - 1), -1]),
    }


def shake(connected, scale: float = 0.3, seed: int = 2) -> None:
    """Random connection weights, far enough from their start to matter."""
    generator = torch.Generator().manual_seed(seed)
    for connection in connected.connections.values():
        for parameter in connection.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale
            parameter.data = drawn.to(parameter.device)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return paired_batch()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real rows that are not part of the project; tests that need them are skipped where they are absent."""
    path = Path(os.environ.get("CC_TUNING_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data at {path}: set CC_TUNING_DATA to a directory with sft/ and parallel/")
    return path
