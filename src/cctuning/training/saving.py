"""Save and load the model, its connection and the optimizer.

The connection is saved beside the base, never inside it. Sharded weights (FSDP2) are gathered in the first process and
saved as the files of an unsharded run, so any run can read them; each process reads its own share back, one tensor at
a time. accelerate's sharded format can only be read under FSDP and leaves out the connection of a base with a LoRA.
torch.distributed.checkpoint's `get_model_state_dict` and `get_optimizer_state_dict` gather the same tensors, but name
the optimizer's state differently from an unsharded run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.connected import ATTRIBUTE, ConnectedModel
from cctuning.model.serialization import read_into, shard_like
from cctuning.model.sites import unwrap
from cctuning.training.card import write_model_card
from cctuning.training.rows import RowsTrainer

if TYPE_CHECKING:
    from cctuning.training.callbacks import BaseDecay
    from cctuning.training.recording import Recording


class SavingTrainer(RowsTrainer):
    """A `RowsTrainer` that saves and loads a `ConnectedModel`."""

    model: Any
    processing_class: Any
    connected: ConnectedModel
    recording: Recording | None = None
    _decay: BaseDecay | None = None
    _embedding: Tensor | None = None  # the input embedding of the model that is being saved, gathered
    _checkpoint = False  # what is being saved is a checkpoint

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's; sharded weights are gathered."""
        self._checkpoint = _internal_call
        if self.connected.connections:
            self._embedding = whole_embedding(self.model)
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        saved = dict(weights(self.model))
        if self.is_peft():
            saved = {name: tensor for name, tensor in saved.items() if tensor.requires_grad or ATTRIBUTE in name}
        self._save(output_dir, {name: whole(tensor, self.args.should_save) for name, tensor in saved.items()})
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        directory = Path(output_dir or str(self.args.output_dir))
        state = self.model.state_dict() if state_dict is None else state_dict
        theirs = {name: tensor for name, tensor in state.items() if ATTRIBUTE not in name}
        if self._checkpoint and not self.is_peft():
            # In the layout of the modules: resuming does not convert the files of a family as from_pretrained does.
            self.model.save_pretrained(directory, state_dict=theirs, save_original_format=False)
            self.processing_class.save_pretrained(directory)
        else:
            super()._save(str(directory), state_dict=theirs)
        if self.connected.connections:
            ours = connection_state({name: tensor for name, tensor in state.items() if ATTRIBUTE in name})
            trained = serialization.base_is_trained(self.connected)
            serialization.save_state(self.connected, directory, ours, trained, self._embedding)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer: Any = self.optimizer
        saved, writes = optimizer.state_dict(), self.args.should_save
        for number, state in saved["state"].items():
            gathered = {key: whole(value, writes) for key, value in state.items() if isinstance(value, Tensor)}
            saved["state"][number] = {**state, **gathered}
        if writes:
            torch.save(saved, Path(output_dir) / OPTIMIZER_NAME)
            if self.lr_scheduler is not None:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        state = Path(checkpoint or "") / TRAINER_STATE_NAME
        if checkpoint is not None and state.is_file():
            logged = json.loads(state.read_text(encoding="utf-8"))["log_history"]
            self._total_train_tokens = max((entry.get("num_tokens", 0) for entry in logged), default=0)
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if not (Path(checkpoint) / OPTIMIZER_NAME).is_file():  # save_only_model
            return
        read_optimizer(self.optimizer, Path(checkpoint))
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if is_sharded(self.model):
            self._load_sharded(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_connection(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if is_sharded(self.model):
            self._load_sharded(Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()
        self._load_connection(str(self.state.best_model_checkpoint))

    def _load_sharded(self, checkpoint: Path) -> None:
        if self._decay is not None:
            self._decay.take()
        if self.recording is not None:
            self.recording.make()
        if self.is_peft():
            read_adapter(self.model, checkpoint, self.model.active_adapter)
        else:
            read_weights(self.model, checkpoint)

    def _load_connection(self, checkpoint: str) -> None:
        if not self.connected.connections:
            return
        files = serialization.read_weights(Path(checkpoint), serialization.WEIGHTS_STEM)
        self.connected.load_connection_state(files, str(Path(checkpoint) / serialization.WEIGHTS_FILE))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [key for key in load_result.missing_keys if ATTRIBUTE not in key]  # loaded by _load_connection
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def is_peft(self) -> bool:
        """Whether the base has a LoRA."""
        return hasattr(self.model, "peft_config")

    def create_model_card(  # type: ignore[override]  # TRL's signature, which differs from transformers' too
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md with the method, its options and its citation."""
        if self.is_world_process_zero():
            path = Path(str(self.args.output_dir)) / "README.md"
            named = [*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])]
            write_model_card(self, path, model_name or path.parent.name, dataset_name, named)


# -- sharded weights -------------------------------------------------------------------------------------------------


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight of `model` is a shard."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """The whole `tensor` on the CPU; empty where it is not to be kept. A collective if it is sharded."""
    with torch.no_grad():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
    return full.cpu() if keep else torch.empty(0)


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by name. Tied parameters are included once."""
    saved = model.state_dict().keys()
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def connection_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict's `...layers.<number>.<ATTRIBUTE>.<part>` to `layers.<number>.<part>`, as on disk."""
    result = {}
    for name, tensor in state.items():
        before, part = name.split(f".{ATTRIBUTE}.")
        result[f"layers.{before.rsplit('.', 1)[1]}.{part}"] = tensor
    return result


def whole_embedding(model: nn.Module) -> Tensor:
    """The base's whole input embedding, by which a saved connection recognises its base."""
    embedding = unwrap(model).get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters([embedding]):
            return embedding.detach().cpu().clone()
    return whole(embedding)


def read_weights(model: nn.Module, directory: Path) -> None:
    """Load all weights but the connection's; each process its own share."""
    files = serialization.read_weights(directory)
    own = {name: tensor for name, tensor in weights(model) if ATTRIBUTE not in name}
    _read(own, files, directory, ignored=model.state_dict().keys() - own.keys())  # tied


def read_adapter(model: nn.Module, directory: Path, adapter: str) -> None:
    """Load a PEFT adapter's weights, each process its own share."""
    files = serialization.read_weights(directory, SAFETENSORS_WEIGHTS_NAME.removesuffix(".safetensors"))
    in_name = re.compile(rf"\.{re.escape(adapter)}(?=\.|$)")  # PEFT leaves it out of the file
    named = {in_name.sub("", name): tensor for name, tensor in model.named_parameters()}
    _read({name: tensor for name, tensor in named.items() if name in files}, files, directory)


def _read(
    own: Mapping[str, Tensor], files: Mapping[str, Tensor], directory: Path, ignored: Collection[str] = ()
) -> None:
    odd = sorted(own.keys() ^ (files.keys() - set(ignored)))
    if odd:
        raise UserError(
            f"{directory}: {len(odd)} weights do not match the model's by name (first: {odd[0]}): the checkpoint is "
            "of another family, or in a layout that only from_pretrained converts; start a new run from it."
        )
    for name, tensor in own.items():
        read_into(tensor, files[name], f"{directory}: {name}")


def read_optimizer(optimizer: Any, directory: Path) -> None:
    """Load an optimizer's state; each process its own share."""
    saved = torch.load(directory / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{directory}: its optimizer's parameters are not those of this run; start a new run.")
    for number, state in saved["state"].items():
        parameter = parameters[number]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # a step count is not sharded
                state[key] = shard_like(parameter, value)
    optimizer.load_state_dict(saved)
