"""Parts of a user's own: registered from outside the package, trained, saved, loaded, merged or refused."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cctuning import ConnectedModel, ConnectionConfig, UserError
from cctuning.connection import (
    Alignment,
    Decision,
    Transform,
    register_alignment,
    register_decision,
    register_transform,
)
from cctuning.model.recorded import Prompts, key
from cctuning.training.card import option_table
from tests.conftest import shake, tiny_llama
from tests.training import toys

EXAMPLES = Path(__file__).parents[2] / "examples"


@register_transform("test_rotation")
class Rotation(Transform):
    """Linear and of low rank in a way of its own."""

    linear = True

    def __init__(self, config, size):
        super().__init__(config, size)
        self.left, self.right = nn.Parameter(torch.randn(size, 2)), nn.Parameter(torch.zeros(2, size))

    def forward(self, hidden):
        return hidden @ self.left @ self.right

    def matrix(self):
        return (self.left @ self.right).detach().float()

    def factors(self):
        return self.left.detach().float(), self.right.detach().float()


@register_transform("test_tanh")
class Tanh(Transform):
    """Not linear."""

    def __init__(self, config, size):
        super().__init__(config, size)
        self.map = nn.Linear(size, size)
        nn.init.zeros_(self.map.weight)

    def forward(self, hidden):
        return torch.tanh(self.map(hidden))


@register_decision("test_scalar")
class Scalar(Decision):
    """One trained share for all dimensions."""

    def __init__(self, config, size):
        super().__init__(config, size)
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, reference, own):
        return torch.sigmoid(self.logit).to(own.dtype)


@register_alignment("test_first")
class First(Alignment):
    """The first token of the reference."""

    def remember(self, output, inputs, reference):
        return output[torch.arange(len(output)), reference.mask.long().argmax(dim=1)], None


OWN = {"decision": "test_scalar", "transform": "test_rotation", "alignment": "test_first"}


def attach(**options) -> ConnectedModel:
    connected = ConnectedModel.attach(tiny_llama(), ConnectionConfig("gated", reference_weights="current", **options))
    shake(connected)
    connected.total_steps = 2
    return connected.train()


def test_every_part_of_ones_own_trains_and_comes_back(batch, tmp_path):
    connected = attach(**OWN)
    connected(**batch, fused_rows=torch.tensor([True, False, True, False])).loss.backward()
    ours = [p for connection in connected.connections.values() for p in connection.parameters()]
    assert len(ours) == 3 * 3 and all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in ours)
    connected.save_pretrained(tmp_path, base_trained=False)
    again = ConnectedModel.from_pretrained(tiny_llama(), tmp_path).eval()
    inputs = {name: batch[name] for name in batch if name != "labels"}
    assert torch.equal(again(**inputs).logits, connected.eval()(**inputs).logits)
    assert "| transform | test_rotation |" in option_table(again.config)


def test_what_is_offered_is_what_the_class_says(batch):
    connected = attach(**OWN, decision_value=1.0)
    offered = connected.reference_pass(connected_batch(batch))
    seen = {}
    site = connected._sites[1]
    site.block.register_forward_hook(lambda module, args, output: seen.update(output=output), prepend=True)
    with torch.no_grad():
        connected.reference_pass(connected_batch(batch))
    assert torch.equal(offered.memory[1][0], seen["output"][:, 0])


def connected_batch(batch):
    from cctuning.model.passes import Batch

    return Batch.take(dict(batch))


def test_a_linear_one_is_merged_and_a_low_rank_one_is_a_lora(batch, tmp_path):
    connected = attach(**OWN).eval()
    expected = connected(batch["input_ids"]).logits
    connected.model.requires_grad_(False)
    connected.export_lora(tmp_path / "lora")
    merged = connected.merge_and_unload()
    torch.testing.assert_close(merged(batch["input_ids"]).logits, expected, rtol=1e-4, atol=1e-4)
    from peft import PeftModel

    lora = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora").eval()
    torch.testing.assert_close(lora(batch["input_ids"]).logits, expected, rtol=1e-4, atol=1e-4)


def test_one_that_is_not_linear_is_refused_in_one_line(tmp_path):
    connected = attach(transform="test_tanh")
    assert not connected.config.mergeable
    for export in (connected.merge_and_unload, lambda: connected.export_lora(tmp_path)):
        with pytest.raises(UserError, match="transform: test_tanh is not linear"):
            export()


def test_an_unknown_name_says_how_a_class_becomes_known():
    with pytest.raises(UserError, match=r"'mine' is not one of low_rank.*name its module in CC_TUNING_PLUGINS"):
        ConnectionConfig("gated", transform="mine")


def test_a_share_may_be_of_another_dtype(batch):
    connected = ConnectedModel.attach(
        tiny_llama().to(torch.bfloat16), ConnectionConfig("gated", decision="test_scalar")
    )
    decision = next(iter(connected.connections.values())).decision
    plain = decision.forward
    decision.forward = lambda *args: plain(*args).float()
    connected(**batch).loss.backward()


def test_the_recording_of_a_changed_class_is_another(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    names = set()
    for text in ("1.0", "2.0", "1.0"):
        (tmp_path / "changing_plugin.py").write_text(
            "from cctuning.connection import Alignment, register_alignment\n"
            "@register_alignment('test_changing')\nclass Changing(Alignment):\n"
            f"    recordable = True\n    factor = {text}\n"
        )
        linecache.checkcache()
        sys.modules.pop("changing_plugin", None)
        importlib.import_module("changing_plugin")
        connected = attach(alignment="test_changing")
        prompts = Prompts([[5, 6, 7]], torch.tensor([[0, 3]]))
        names.add(key(connected, prompts, "fp32", weights=False))
    assert len(names) == 2


def test_a_name_that_is_taken_and_a_class_of_another_kind_are_errors():
    with pytest.raises(UserError, match="decision: 'gate' is registered already, by cctuning"):
        register_decision("gate")(Scalar)
    with pytest.raises(UserError, match="transform: Scalar must derive from Transform"):
        register_transform("test_other")(Scalar)


def test_modules_that_are_named_are_imported(monkeypatch, tmp_path):
    (tmp_path / "plugin_of_a_test.py").write_text(
        "from cctuning import CCTrainer\n"  # a module of the user's may import all of the package
        "from cctuning.connection import Alignment, register_alignment\n"
        "@register_alignment('of_a_plugin')\nclass Own(Alignment): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CC_TUNING_PLUGINS", "plugin_of_a_test")
    assert ConnectionConfig("gated", alignment="of_a_plugin").alignment == "of_a_plugin"
    (tmp_path / "broken_plugin.py").write_text("undefined_name\n")
    monkeypatch.setenv("CC_TUNING_PLUGINS", "broken_plugin")
    with pytest.raises(
        UserError, match=r"CC_TUNING_PLUGINS=broken_plugin: cannot be imported \(NameError: name 'undef"
    ):
        ConnectionConfig("gated", alignment="of_no_plugin")
    monkeypatch.setenv("CC_TUNING_PLUGINS", "no_such_plugin")
    with pytest.raises(UserError, match="CC_TUNING_PLUGINS=no_such_plugin: cannot be imported"):
        ConnectionConfig("gated", alignment="of_no_plugin")


def test_a_command_knows_it_in_a_process_of_its_own(tmp_path):
    """The module is imported by a name that an option has, and imports the package itself."""
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"CC_TUNING_PLUGINS": "own_transform", "PYTHONPATH": f"{source}:{EXAMPLES}"}
    command = [sys.executable, "-m", "cctuning", "train", "--transform", "scale", "--connection", "gated"]
    command += ["--model", str(tmp_path / "none"), "--data", str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "none" in done.stderr and "scale" not in done.stderr, done.stderr


def test_the_example_runs(monkeypatch, tmp_path):
    toys.model().save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "own_transform", raising=False)
    import own_transform

    assert own_transform.main(str(tmp_path)) < 1e-4
