"""The model that a training gives back is a plain one: it can be copied, and trained again at another precision."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from cctuning import CCConfig, CCTrainer, ConnectionConfig
from cctuning.model.runner import PATCHED
from tests.conftest import tiny_llama
from tests.training.toys import rows, tokenizer

DATA = [{"prompt": row["prompt"], "response": row["response"] or "x1", "lang": "en"} for row in rows(8)]
PAIRS = [{"text": f"x{i} x{i + 1}", "reference": f"w{i} w{i + 1}", "lang": "qaa"} for i in range(8)]


def trained(model, folder, kind="none", lora=False, **options):
    given = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, **options}
    trainer = CCTrainer(
        model,
        CCConfig(str(folder), save_strategy="no", gradient_checkpointing=False, disable_tqdm=True, **given),
        ConnectionConfig(connection=kind),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list(DATA),
        parallel_dataset=Dataset.from_list(PAIRS) if kind == "align" else None,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if lora else None,
    )
    seen = []
    trainer.model.get_decoder().register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer.train()
    return trainer.connected.merge_and_unload(), seen


@pytest.mark.parametrize("kind", ["none", "align", "gated"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_copy_runs_its_own_weights(kind, lora, tmp_path):
    model, _ = trained(tiny_llama(layers=2), tmp_path / "first", kind, lora, bf16=True)
    assert not any(name in vars(model) for name in PATCHED)
    ids = torch.arange(6, 12)[None]
    with torch.no_grad():
        other = copy.deepcopy(model)
        before = model(ids).logits
        for weight in other.parameters():
            weight.zero_()
        assert torch.equal(model(ids).logits, before) and not other(ids).logits.any()
    again, _ = trained(copy.deepcopy(model).requires_grad_(True), tmp_path / "second", kind)  # PEFT leaves it frozen
    assert not torch.equal(again(ids).logits, before) and torch.equal(model(ids).logits, before)


def test_a_second_training_has_its_own_precision(tmp_path):
    model = tiny_llama(layers=2)
    for number, bf16 in enumerate((False, True, False)):
        model, under_autocast = trained(model, tmp_path / str(number), bf16=bf16)
        assert under_autocast and set(under_autocast) == {bf16}
        assert model(torch.arange(6, 12)[None]).logits.dtype == torch.float32


def test_a_forward_of_the_user_stays(tmp_path):
    model = tiny_llama(layers=2)
    calls = []
    own = model.forward
    model.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    mine = model.forward
    model, _ = trained(model, tmp_path / "run")
    assert vars(model)["forward"] is mine and calls
