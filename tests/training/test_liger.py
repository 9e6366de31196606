"""Liger kernels: losses and gradients of a run without them, on a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from transformers.models.llama import modeling_llama

from cctuning import CCConfig, CCTrainer, ConnectionConfig
from tests.training.toys import model, rows, tokenizer

ready = torch.cuda.is_available() and find_spec("liger_kernel") is not None


@pytest.mark.skipif(not ready, reason="needs a GPU and liger-kernel")
@pytest.mark.parametrize("connection", ["none", "align", "gated"])
def test_losses_and_gradients_are_those_of_a_run_without(connection, tmp_path, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)  # undo Liger's
    logs = []
    for liger in (False, True):
        torch.manual_seed(0)
        args = CCConfig(
            str(tmp_path / str(liger)),
            max_steps=3,
            learning_rate=1e-3,
            bf16=False,
            use_liger_kernel=liger,
            per_device_train_batch_size=8,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        )
        trainer = CCTrainer(
            model(), args, ConnectionConfig(connection=connection), train_dataset=rows(), processing_class=tokenizer()
        )
        trainer.train()
        logs.append([[log[name] for name in ("loss", "grad_norm")] for log in trainer.state.log_history[:3]])
    assert modeling_llama.apply_rotary_pos_emb.__module__.startswith("liger_kernel")  # they did run
    assert torch.allclose(*map(torch.tensor, logs), rtol=1e-3)
