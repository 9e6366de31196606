"""Private members of TRL and transformers that the trainer depends on: these tests fail when one of them changes."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import SFTConfig, SFTTrainer

from cctuning import CCTrainer

OVERRIDDEN = {
    "_run_epoch": [
        "self",
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_init_training_state": [
        "self",
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
    "set_initial_training_values": ["self", "args", "dataloader"],
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
    "_set_signature_columns_if_needed": ["self"],
    "_save": ["self", "output_dir", "state_dict"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
    "_issue_warnings_after_load": ["self", "load_result"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_get_train_sampler": ["self", "train_dataset"],
    "evaluation_loop": [
        "self",
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_members_keep_their_signature(name):
    assert list(inspect.signature(getattr(SFTTrainer, name)).parameters) == OVERRIDDEN[name]


def test_every_private_override_is_listed():
    layers = CCTrainer.__mro__[: CCTrainer.__mro__.index(SFTTrainer)]
    private = [name for layer in layers for name in vars(layer) if name.startswith("_") and name in dir(SFTTrainer)]
    private = [name for name in private if callable(getattr(SFTTrainer, name)) and not name.startswith("__")]
    assert set(private) <= set(OVERRIDDEN)


def test_a_dataloader_takes_a_sampler():
    names = ["self", "dataset", "description", "batch_size", "sampler_fn", "is_training"]
    assert list(inspect.signature(Trainer._get_dataloader).parameters)[:6] == names


def test_initial_training_values_end_in_samples_batch_batches_and_steps():
    source = inspect.getsource(Trainer.set_initial_training_values)
    returned = source[source.rindex("return (") :].split("(")[1].split(")")[0]
    assert [name.strip() for name in returned.split(",") if name.strip()][-4:] == [
        "num_train_samples",
        "total_train_batch_size",
        "steps_in_epoch",
        "max_steps",
    ]


def test_members_that_are_read_still_exist():
    source = inspect.getsource(SFTTrainer) + inspect.getsource(Trainer)
    for name in ("_metrics", "_total_train_tokens", "_signature_columns", "model_accepts_loss_kwargs"):
        assert f"self.{name}" in source


def test_trl_leaves_the_plain_forward_alone():
    """SFTTrainer patches `model.forward`; without its keyword the original must run, or hooks and folds would not."""
    from trl.trainer.utils import add_fused_lm_head

    assert "if not fused_lm_head" in inspect.getsource(add_fused_lm_head)


def test_our_options_do_not_clash_with_the_trainers():
    """One flat name space for flags and YAML keys."""
    from dataclasses import fields

    from cctuning import CCConfig, ConnectionConfig
    from cctuning.training.options import RunOptions

    kinds = (RunOptions, ConnectionConfig, CCConfig)
    names = [option.name for kind in kinds for option in fields(kind) if option.init]
    assert len(names) == len(set(names))
    assert {option.name for option in fields(SFTConfig)} <= set(names)


def test_checkpointed_layers_hold_our_modules():
    """The connection runs inside the layer that is recomputed; it must be a layer of this kind."""
    assert "gradient_checkpointing" in inspect.getsource(GradientCheckpointingLayer)
