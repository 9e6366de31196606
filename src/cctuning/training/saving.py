"""Save and load the model, its connection and the optimizer.

The connection is saved beside the base, never inside it. Sharded weights (FSDP2) are gathered and written one layer
at a time (`sharded_checkpoints`), into the files of an unsharded run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from cctuning.model import serialization
from cctuning.model.connected import ATTRIBUTE, ConnectedModel
from cctuning.model.shards import ShardReader
from cctuning.model.starting_weights import StartingWeights
from cctuning.training import sharded_checkpoints as sharded
from cctuning.training.card import write_model_card
from cctuning.training.mixing import MixingTrainer

if TYPE_CHECKING:
    from cctuning.training.recording import Recording


class SavingTrainer(MixingTrainer):
    """A `MixingTrainer` that saves and loads a `ConnectedModel`."""

    model: Any
    connected: ConnectedModel
    recording: Recording | None = None
    _start: StartingWeights | None = None
    _embedding: Tensor | None = None  # the input embedding of the model that is being saved, gathered

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's; sharded weights are written one layer at a time."""
        if self.connected.connections:
            self._embedding = sharded.whole_embedding(self.model)
        if not sharded.is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        directory, writer = Path(output_dir or str(self.args.output_dir)), self.args.should_save
        if self._is_peft():
            mine = (
                (name, p) for name, p in self.model.named_parameters() if p.requires_grad and ATTRIBUTE not in name
            )
            super()._save(str(directory), {name: sharded.whole(parameter) for name, parameter in mine})
        else:
            sharded.save_base(self.model, directory, skip=ATTRIBUTE, plain=not _internal_call, writer=writer)
            if writer and self.processing_class is not None:
                self.processing_class.save_pretrained(str(directory))
        if self._embedding is not None:
            sharded.save_connection(self.connected, directory, self._embedding, writer=writer)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        directory = Path(output_dir or str(self.args.output_dir))
        state = self.model.state_dict() if state_dict is None else state_dict
        theirs = {name: tensor for name, tensor in state.items() if ATTRIBUTE not in name}
        super()._save(str(directory), state_dict=theirs)
        if self.args.should_save and self.connected.connections:
            ours = sharded.connection_state({name: tensor for name, tensor in state.items() if ATTRIBUTE in name})
            trained = serialization.base_is_trained(self.connected)
            serialization.save_state(self.connected, directory, ours, trained, self._embedding)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not sharded.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharded.write_optimizer(self.optimizer, self.model, Path(output_dir), writer=self.args.should_save)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (sharded.is_sharded(self.model) or sharded.has_optimizer(Path(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharded.read_optimizer(self.optimizer, self.model, Path(checkpoint))
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if sharded.is_sharded(self.model):
            self._load_sharded(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = Path(resume_from_checkpoint) / TRAINER_STATE_NAME
        logged = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
        self._total_train_tokens = max((entry.get("num_tokens", 0) for entry in logged), default=0)
        self._load_connection(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if sharded.is_sharded(self.model):
            self._load_sharded(Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()
        self._load_connection(str(self.state.best_model_checkpoint))

    def _load_sharded(self, checkpoint: Path) -> None:
        if self._start is not None:
            self._start.take()
        if self.recording is not None:
            self.recording.make()
        if self._is_peft():
            sharded.read_adapter(self.model, checkpoint, self.model.active_adapter)
        else:
            sharded.read_weights(self.model, checkpoint, skip=ATTRIBUTE)

    def _load_connection(self, checkpoint: str) -> None:
        if not self.connected.connections:
            return
        files = ShardReader(Path(checkpoint), serialization.WEIGHTS_STEM)
        self.connected.load_connection_state(files, str(files.directory / serialization.WEIGHTS_FILE))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [key for key in load_result.missing_keys if ATTRIBUTE not in key]  # loaded by _load_connection
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _is_peft(self) -> bool:
        return hasattr(self.model, "peft_config")

    def create_model_card(  # type: ignore[override]  # TRL's signature, which differs from transformers' too
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md with the method, its options and its citation."""
        if self.is_world_process_zero():
            directory = Path(str(self.args.output_dir))
            write_model_card(
                directory / "README.md",
                self.connected,
                model_name=model_name or directory.name,
                dataset_name=dataset_name,
                tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
                args=self.args,
                peft=self._is_peft(),
            )
