"""A transformers causal LM with a connection registered inside its layers.

The methods are named as in PEFT. The model inside stays a plain transformers (or PEFT) model: its own forward and
generate keep working, with the transform at work where its scope is `all`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig
from cctuning.connection.align import LayerAlignment, RecordedReferences
from cctuning.connection.gated import LayerConnection
from cctuning.errors import UserError
from cctuning.model import lora, merge, serialization
from cctuning.model.forward import ATTRIBUTE, ConnectedForward
from cctuning.model.packing import rows_separable
from cctuning.model.runner import Runner, instance_state, restore_instance
from cctuning.model.sites import Site, find_sites, unwrap

if TYPE_CHECKING:
    from cctuning.model.adaptive import Fit


class ConnectedModel(ConnectedForward):
    """A causal LM whose activations are connected to those of each row's reference (arXiv 2506.00875).

    Create one with `attach` (new) or `from_pretrained` (saved). Train it with `CCTrainer`, or in a loop of your own:
    set `total_steps` once and `step` before each optimiser step, for the schedule of `paths: sampled`. Attach after
    `get_peft_model`, not before: PEFT would freeze the connection and hide the LoRA's share of the activation from it.

    Attributes:
        model: the model inside. config: options of the connection.
        step, total_steps: optimiser steps so far, and of the whole training.
        reference_language: code of the language of the references.
        recorded: what references were recorded; see `keep_recorded`.
        base_trained: whether the base's own weights were trained; known after training and of a saved connection.
        layers, width: numbers of the layers that connect, and the width of their activations.
        padding_free: run rows with labels end to end, without padding; see packing.py.
        mixes_references: a batch without references for all rows runs the others as students.
    """

    mixes_references = True

    def __init__(self, model: PreTrainedModel, config: ConnectionConfig) -> None:
        super().__init__(model, config)
        self.reference_language = "en"
        self.base_trained: bool | None = None
        self.layers: list[int] = []
        self.width = 0
        self._handles: list[Any] = []
        self._before = [
            (inner, instance_state(inner)) for inner in {id(m): m for m in (model, unwrap(model))}.values()
        ]
        serialization.check_adapter(self.model)
        if config.connection != "none":
            self._insert(find_sites(self.model))
        self._run = Runner(self.model, self.wire)
        self._handles += self._run.handles
        self.train(model.training)

    # -- attaching and detaching -------------------------------------------------------------------------------------

    @classmethod
    def attach(cls, model: PreTrainedModel, config: ConnectionConfig | None = None) -> ConnectedModel:
        """Connect `model`, a transformers causal LM or a PEFT model around one, in place.

        Raises:
            UserError: the model's FFN is not known, it is connected already, or it lacks one of `layers`.
        """
        config = config or ConnectionConfig()
        if config.connection == "adaptive":
            from cctuning.model.adaptive import AdaptiveModel  # a subclass of this one

            return AdaptiveModel(model, config)
        return cls(model, config)

    def _insert(self, sites: list[Site]) -> None:
        """Register the connection in the layers, and its hooks."""
        wanted = self.config.layers_of(len(sites))
        missing = [number for number in wanted if number not in range(len(sites))]
        if missing:
            raise UserError(f"layers: {missing} not in this model, which has layers 0 to {len(sites) - 1}.")
        chosen = [site for site in sites if site.index in wanted]
        self.layers, self.width = [site.index for site in chosen], chosen[0].size
        aligns = self.config.connection == "align"
        residual = aligns and self.config.align_at == "residual"
        base = unwrap(self.model).config.get_text_config()
        stream = getattr(base, "altup_active_idx", None) if residual else None
        for site in chosen:
            part: LayerAlignment | LayerConnection
            if aligns:
                part = LayerAlignment(self.config, site.index, len(chosen), self.wire, stream)
                self.aligned[site.index] = part
            else:
                part = LayerConnection(self.config, site.size, site.index, len(chosen), self.wire)
                self._register(site, part)
            at = site.layer if residual else site.block
            self._handles.append(at.register_forward_hook(part.hook, with_kwargs=True))
            if site.in_place and at is site.block:  # the layer writes into what the hook returned: give it a copy
                self._handles.append(at.register_forward_hook(lambda module, args, output: output.clone()))
        if not aligns:
            self._sites = chosen
            return
        above = [site.layer for site in sites if site.index > self.layers[-1]]
        self._handles += [layer.register_forward_pre_hook(self._above, with_kwargs=True) for layer in above]
        self.may_leave = bool(above) and rows_separable(base)

    def _register(self, site: Site, connection: nn.Module) -> None:
        """Make `connection` a submodule of its decoder layer, so that it is moved, sharded and saved with it."""
        if hasattr(site.layer, ATTRIBUTE):
            raise UserError(f"{site.name} is connected already; unload() the first connection, or use its model.")
        weight = next(p for p in site.layer.parameters() if p.is_floating_point())
        # At least fp32, as PEFT keeps a LoRA: in bf16 a step of 2e-4 is lost beside a bias of -2.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        site.layer.add_module(ATTRIBUTE, connection.to(device=weight.device, dtype=dtype))

    def unload(self) -> PreTrainedModel:
        """Remove the connection and return the model inside, its weights unchanged.

        What accelerate put on the model for training (autocast around its forward) is removed too.
        """
        for handle in self._handles:
            handle.remove()
        for inner, state in self._before:
            restore_instance(inner, state)
        for site in self._sites:
            delattr(site.layer, ATTRIBUTE)
        self._handles, self._sites = [], []
        return self.model

    def merge_and_unload(self) -> PreTrainedModel:
        """Merge the transform into the weights, in place: a plain transformers model of the same speed.

        A LoRA on the base is merged first, as `PeftModel.merge_and_unload` does.

        Raises:
            UserError: the scope or the transform cannot be merged; no weight has been changed.
        """
        transforms = merge.check_merge(self)
        if isinstance(self.model, PeftModel):
            merge.untie(unwrap(self.model))
        plain = self.unload()
        if isinstance(plain, PeftModel):
            plain = plain.merge_and_unload()
        for site in find_sites(plain) if transforms else []:
            if site.index in transforms:
                delta = transforms[site.index].matrix()
                for projection in site.projections:
                    merge.merge_projection(projection, delta)
        return plain

    def export_lora(self, directory: str | Path) -> None:
        """Write the transform, with any LoRA on the base, as an ordinary PEFT LoRA for the untouched base model.

        Raises:
            UserError: a LoRA cannot express it (scope, transform, MoE, trained base weights).
        """
        lora.export_lora(self, Path(directory))

    def keep_recorded(self, recorded: RecordedReferences, references: bool = True) -> None:
        """Use the statistics of a recording (`cctuning.model.recorded.record`) and, with `references`, its vectors:
        batches then name their references by `reference_row`."""
        self.recorded, self.measured = recorded if references else None, True
        for layer, alignment in self.aligned.items():
            alignment.statistics = recorded.statistics[layer]
        for layer, connection in self.connections.items():
            if self.config.loss == "standardized" and self.config.connection == "gated":
                serialization.read_into(connection.spread, recorded.statistics[layer].spread, "spread")

    def fit_transform(self, batches: Iterable[dict[str, Tensor]]) -> Fit | None:
        """Fit, after training, what is not trained by gradient descent (nothing, but for the adaptive connection)."""
        return None

    # -- saving ------------------------------------------------------------------------------------------------------

    def connection_state(self) -> dict[str, Tensor]:
        """The connection's weights by name: `layers.<number>.<part>`."""
        return {
            f"layers.{number}.{name}": tensor
            for number, connection in self.connections.items()
            for name, tensor in connection.state_dict().items()
        }

    def load_connection_state(self, state: Mapping[str, Tensor], where: str = "connection") -> None:
        """Load what `connection_state` returned; of sharded weights each process loads its own share."""
        own = self.connection_state()
        odd = sorted(own.keys() ^ state.keys())
        if odd:
            raise UserError(f"{where}: its weights do not match this connection ({len(odd)} differ, first: {odd[0]}).")
        for name, tensor in own.items():
            serialization.read_into(tensor, state[name], f"{where}: {name}")
        self.measured = True

    def save_pretrained(self, directory: str | Path, base_trained: bool | None = None) -> None:
        """Write the connection as JSON and safetensors, atomically; save the base with its own `save_pretrained`.

        Args:
            base_trained: whether the base's own weights were trained (full fine-tuning); None: whether any of them is
                trainable.
        """
        trained = serialization.base_is_trained(self) if base_trained is None else base_trained
        serialization.save_state(self, Path(directory), self.connection_state(), trained)

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | Path) -> ConnectedModel:
        """Attach a saved connection to `model`: the base it was trained with, or its fine-tuned copy.

        A LoRA in the same directory is loaded too, unless `model` is a PEFT model already.

        Raises:
            UserError: the directory is incomplete, or holds the connection of another model.
        """
        directory = Path(directory)
        record = serialization.read_config(directory)
        config = ConnectionConfig.from_dict(record["connection"], str(directory / serialization.CONFIG_FILE))
        state = serialization.read_weights(directory, serialization.WEIGHTS_STEM)
        if (directory / serialization.LORA_CONFIG).is_file() and not isinstance(model, PeftModel):
            model = serialization.load_lora(model, directory)
        serialization.check_base(model, record, directory)
        connected = cls.attach(model, config)
        try:
            connected.load_connection_state(state, str(directory / serialization.WEIGHTS_FILE))
        except UserError:
            connected.unload()
            raise
        connected.reference_language = record["reference_language"]
        connected.base_trained = record["base"]["trained"]
        return connected
