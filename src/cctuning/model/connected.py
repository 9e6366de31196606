"""ConnectedModel: a transformers causal LM with the connection registered inside its layers.

Verbs are PEFT's. The model inside stays a plain transformers (or PEFT) model: its own forward and generate keep
working, with the transform at work where its scope is `all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cctuning.connection import (
    ConnectionConfig,
    Enough,
    LayerConnection,
    Plan,
    Reference,
    Wire,
    answering,
    restore,
)
from cctuning.errors import UserError
from cctuning.model import serialization
from cctuning.model.aligner import Aligner
from cctuning.model.objective import ConnectedOutput, assemble
from cctuning.model.passes import (
    Batch,
    GenerationPlanner,
    Step,
    append_references,
    flat_index,
    plan_inference,
    plan_step,
    uniform,
)
from cctuning.model.recorded import RecordedReferences
from cctuning.model.runner import (
    Runner,
    copy_output,
    no_gradient,
    several_processes,
    trainable_parameters,
    with_cache,
)
from cctuning.model.shards import read_into
from cctuning.model.sites import Site, find_sites, unwrap
from cctuning.model.starting_weights import StartingWeights, evaluating

ATTRIBUTE = "cross_lingual_connection"  # the name under which a layer's connection is registered in it


class ConnectedModel(nn.Module):
    """A causal LM whose FFN activations are connected to those of each row's reference (arXiv 2506.00875).

    Build one with `attach` (new) or `from_pretrained` (saved). It is an `nn.Module`, at first in the mode (training or
    evaluation) of the model inside. Train it in a loop of your own, with `total_steps` set once and `step` as it goes
    (the schedule of `paths: sampled`), or let `CCTrainer` do it. Attach after `get_peft_model`, never before: PEFT
    would freeze the connection and hide the LoRA's share of the activation from it.
    """

    def __init__(self, model: PreTrainedModel, config: ConnectionConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.wire = Wire()
        self.step = 0  # optimiser steps so far and total: the schedule of `paths: sampled`
        self.total_steps: int | None = None
        self.seed = 0
        self.reference_language = "en"
        self.start: StartingWeights | None = None  # what references run through in training; see keep_start
        self.recorded: RecordedReferences | None = None  # what they are in its place; see keep_recorded
        self.base_trained: bool | None = None  # known after CCTrainer.train, and of a saved connection
        self.layers: list[int] = []  # that connect, and the width of what they are offered
        self.width = 0
        self.aligner: Aligner | None = None
        self.measured = False  # the references' spread, where the gated connection's error is in units of it
        self._handles: list[Any] = []
        self._insert()
        self.written = serialization.times_written(self)  # so that export_lora can tell whether the base was trained
        self.train(model.training)

    # -- attaching and detaching -------------------------------------------------------------------------------------

    @classmethod
    def attach(cls, model: PreTrainedModel, config: ConnectionConfig | None = None) -> ConnectedModel:
        """Connect `model`, in place.

        Args:
            model: a transformers causal LM, or a PEFT model around one.
            config: the connection's options; None for the defaults.

        Raises:
            UserError: the model has no FFN that is known, is connected already, or lacks a layer that is named.
        """
        config = config or ConnectionConfig()
        if config.connection == "adaptive":
            from cctuning.model.adaptive_model import AdaptiveModel

            return AdaptiveModel(model, config)
        return cls(model, config)

    def _insert(self) -> None:
        serialization.check_adapter(self.model)
        connecting = self.config.connection != "none"
        sites = find_sites(self.model) if connecting else []
        wanted = self.config.layers_of(len(sites))
        missing = [number for number in wanted if number not in range(len(sites))]
        if missing and connecting:
            raise UserError(f"layers: {missing} not in this model, which has layers 0 to {len(sites) - 1}.")
        chosen = [site for site in sites if site.index in wanted]
        self.layers, self.width = [site.index for site in chosen], chosen[0].size if chosen else 0
        if self.config.connection == "align":
            self.aligner = Aligner(self.config, chosen, sites, self.wire)
            self._handles += self.aligner.handles
            chosen = []
        for site in chosen:
            connection = LayerConnection(self.config, site.size, site.index, len(chosen), self.wire)
            self._register(site, connection)
            self._handles.append(site.block.register_forward_hook(connection.hook, with_kwargs=True))
            if site.in_place:  # the layer writes into what the hook returned: give it a copy
                self._handles.append(site.block.register_forward_hook(copy_output))
        self._sites = chosen
        self._run = Runner(self.model, self.wire)
        self._handles += self._run.handles

    def _register(self, site: Site, connection: nn.Module) -> None:
        """Make `connection` a part of the decoder layer it acts on, so that it is moved, sharded and saved with it."""
        if hasattr(site.layer, ATTRIBUTE):
            raise UserError(f"{site.name} is connected already; unload() the first connection, or use its model.")
        weight = next(p for p in site.layer.parameters() if p.is_floating_point())
        # At least fp32, as PEFT keeps a LoRA: in bf16 a step of 2e-4 is lost beside a bias of -2.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        site.layer.add_module(ATTRIBUTE, connection.to(device=weight.device, dtype=dtype))

    @property
    def connections(self) -> dict[int, Any]:
        """Layer number -> that layer's connection."""
        return {site.index: getattr(site.layer, ATTRIBUTE) for site in self._sites}

    def unload(self) -> PreTrainedModel:
        """The model inside, without the connection (what bypassing the transform scores); weights unchanged."""
        for handle in self._handles:
            handle.remove()
        for site in self._sites:
            delattr(site.layer, ATTRIBUTE)
        self._handles, self._sites = [], []
        return self.model

    def merge_and_unload(self) -> PreTrainedModel:
        """Fold the transform into the weights: a plain transformers model of the same speed, in place.

        A LoRA on the base is merged first, as `PeftModel.merge_and_unload` does.

        Raises:
            UserError: the scope or the transform cannot be folded.
        """
        from cctuning.model.merge import merge

        return merge(self)

    def export_lora(self, directory: str | Path) -> None:
        """Write the transform (with any LoRA on the base) as an ordinary PEFT LoRA for the untouched base model.

        Raises:
            UserError: it cannot be written so (scope, transform, MoE, trained base weights); the message says why.
        """
        from cctuning.model.lora import export_lora

        export_lora(self, Path(directory))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within: the model runs without its connection (a LoRA on the base stays on)."""
        before, self.wire.enabled = self.wire.enabled, False
        try:
            yield
        finally:
            self.wire.enabled = before

    def keep_start(self, start: StartingWeights | None = None) -> None:
        """Keep the tuned weights as they are now, for `reference_weights: start`; `CCTrainer` does.

        In a loop of one's own, where `reference_weights` is unset, references run through them from then on.

        Args:
            start: a copy that is at hand already; None: make one.
        """
        self.start = start or StartingWeights(self.model, skip=ATTRIBUTE)

    def keep_recorded(self, recorded: RecordedReferences, references: bool = True) -> None:
        """Take the references' statistics from a recording (`cctuning.model.recorded.record`), and, unless
        `references` is off, the references too: batches then say which by `reference_row`."""
        self.recorded, self.measured = recorded if references else None, True
        if self.aligner is not None:
            self.aligner.keep(recorded)
        for layer, connection in self.connections.items():
            connection.set_spread(recorded.statistics[layer].spread)

    # -- running -----------------------------------------------------------------------------------------------------

    def _reference_pass(self, batch: Batch, through: Callable[..., Any] | None = None) -> Plan:
        """Run the references once, without gradient, LM head or cache: a plan whose memory holds what layers kept.

        Never through a DDP wrapper: a rank may have no reference in its batch, and DDP's forward is collective.
        """
        assert batch.reference_ids is not None and batch.reference_mask is not None
        rows, positions = batch.reference_ids.shape
        plan = Plan("record", rows, positions, reference=Reference.from_mask(batch.reference_mask))
        if self.aligner is not None:
            plan.spans = batch.reference_spans(self.config.align_pool)
            plan.stop = self.aligner.may_end(through is None)
        nothing = batch.reference_ids.new_empty(0)
        with no_gradient(), suppress(Enough):
            inputs = {"input_ids": batch.reference_ids, "attention_mask": batch.reference_mask, "use_cache": False}
            self._run(through, plan, nothing, **inputs)
        return plan

    def reference_vectors(self, input_ids: Tensor, attention_mask: Tensor, text: Tensor | None) -> dict[int, Tensor]:
        """Layer -> (R, d): what each layer is offered by these references, through the weights as they are.

        Args:
            input_ids, attention_mask: (R, S), right-padded. text: (R, 2) spans of their own text.
        """
        batch = Batch(input_ids, attention_mask, None, input_ids, attention_mask, torch.arange(len(input_ids)))
        with evaluating(self.model):
            plan = self._reference_pass(replace(batch, reference_text=text))
        return {layer: values for layer, (values, _) in plan.memory.items()}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        reference_input_ids: Tensor | None = None,
        reference_attention_mask: Tensor | None = None,
        reference_index: Tensor | None = None,
        *,
        reference_row: Tensor | None = None,
        text: Tensor | None = None,
        reference_text: Tensor | None = None,
        row: Tensor | None = None,
        fused_rows: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_rows_in_batch: Tensor | int | None = None,
        loss_only: bool = False,
        through: nn.Module | None = None,
        **kwargs: Any,
    ) -> ConnectedOutput:
        """Losses and logits of a batch.

        Args:
            input_ids, attention_mask, labels: (B, T), right-padded in training; labels -100 where no loss. A row whose
                labels are all -100 has no response: it trains the alignment alone.
            reference_input_ids, reference_attention_mask: (R, S) the references, each ending where its prompt ends.
            reference_index: (B,) which reference each row uses, -1 for none (a row in the reference language); may be
                left out where R = B.
            reference_row: (B,) which recorded reference each row uses, -1 for none; in place of the three above, after
                `keep_recorded`.
            text, reference_text: (B, 2) and (R, 2) first position of each prompt's own text and the one after its
                last; default: from the second token to the prompt's end.
            row: (B,) row ids for the draw of `paths: sampled`; default 0..B-1.
            fused_rows: (B,) bool; overrides that draw.
            prompt_lengths: (B,) without labels, tokens of each prompt where answers follow (rows padded on the right):
                the answer is then scored as `generate` would write it. Default: the prompts end where the rows do.
            num_items_in_batch, num_rows_in_batch: response tokens and rows of the whole optimiser step, where it is
                accumulated or distributed; default: this batch's.
            loss_only: compute logits at scored positions only, and return none.
            through: the module to call in place of the model inside (its DDP or DeepSpeed wrapper).
            kwargs: passed to the model.

        Without labels: logits of the student pass, or, for rows with a reference, of the live connection.
        """
        batch = Batch.build(
            input_ids, attention_mask, labels, reference_input_ids, reference_attention_mask, reference_index
        )
        batch = replace(batch, text=text, reference_text=reference_text)
        if labels is None:
            predict = None if prompt_lengths is None else answering(batch.attention_mask, prompt_lengths)
            return self._infer(batch, predict, kwargs)
        kwargs.setdefault("use_cache", False)
        connecting = self.config.connection != "none" and self.wire.enabled
        memory: dict[int, Tensor] = {}
        others: Tensor | None = None  # recorded references that a row's own is told from
        if not connecting or (self.aligner and not self.training):  # nothing of an alignment is left to evaluate
            batch = replace(batch, reference_ids=None, reference_index=torch.full_like(batch.reference_index, -1))
        elif self.recorded is not None and self.training and reference_row is not None:
            most = self.config.align_negatives if self.config.loss == "contrastive" else 0
            memory, index, others = self.recorded.offer(reference_row, most, self.seed * 1_000_003 + self.step)
            batch = replace(batch, reference_ids=None, reference_index=index)
        sampled = self.config.paths == "sampled" and bool(self.connections)
        if fused_rows is None and connecting and self.training and sampled:
            if self.total_steps is None and self.config.fused_probability_start != self.config.fused_probability_end:
                raise UserError(
                    "paths: sampled anneals over training: set total_steps once, and step before each optimiser step."
                )
            ids = torch.arange(len(input_ids), device=input_ids.device) if row is None else row
            fused_rows = uniform(self.seed, self.step, ids) < self.fused_probability
        rows = num_rows_in_batch
        if rows is None:  # an alignment is averaged over the rows that have a reference
            rows = int(batch.paired.sum().clamp(min=1)) if self.aligner else len(input_ids)
        share = 1.0 / torch.as_tensor(rows, dtype=torch.float32, device=input_ids.device) if connecting else None
        step = plan_step(batch, self.config, training=self.training, fused_rows=fused_rows, row_share=share)
        step.plan.memory = {layer: (vectors, None) for layer, vectors in memory.items()}
        if self.aligner is not None and step.plan.row_weight is not None and not bool(step.score.any()):
            step.plan.stop = self.aligner.may_end(through is None or through is self.model)
        output = self._run_step(batch, step, through, loss_only, others, kwargs)
        if self.aligner is not None and step.plan.stop:
            result = self.aligner.alone(batch, step)
            if result is not None and result.loss is not None:
                result.loss = restore(result.loss, self.wire, step.plan)
                return result
            output = self._run_step(batch, step, through, loss_only, others, kwargs)
        base = unwrap(self.model).config.get_text_config()
        return assemble(
            batch,
            step,
            output,
            self.config,
            training=self.training,
            num_items=num_items_in_batch,
            num_rows=rows,
            router_coefficient=getattr(base, "router_aux_loss_coef", 0.0),
            loss_only=loss_only,
        )

    def _infer(self, batch: Batch, predict: Tensor | None, kwargs: dict[str, Any]) -> ConnectedOutput:
        plan = plan_inference(batch, self.config, predict)
        if batch.reference_ids is not None and self.wire.enabled:
            recorded = self._reference_pass(batch)
            plan.reference, plan.memory = recorded.reference, recorded.memory
        output = self._run(None, plan, None, input_ids=batch.input_ids, attention_mask=batch.attention_mask, **kwargs)
        logits = restore(output.logits, self.wire, plan)
        return ConnectedOutput(logits=logits, past_key_values=getattr(output, "past_key_values", None))

    def _run_step(
        self,
        batch: Batch,
        step: Step,
        through: nn.Module | None,
        loss_only: bool,
        others: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        ids, mask = step.input_ids, step.attention_mask
        start = self.start if self.training and self.config.reference_weights != "current" else None
        if batch.reference_ids is not None:
            if self.config.reference_gradient and self.training:
                ids, mask = append_references(step, batch, pad=int(batch.input_ids[0, 0]))
            else:
                if self.training and self.config.reference_weights == "start" and self.start is None:
                    raise UserError("reference_weights: start: call keep_start() before the first step.")
                recorded = self._reference_pass(batch, start)
                step.plan.reference, step.plan.memory = recorded.reference, recorded.memory
        elif self.recorded is not None or (self.aligner and not self.training):
            pass  # nothing runs
        elif self.config.connection != "none" and not self.config.reference_gradient and several_processes():
            # Where weights are sharded each forward is collective: a rank without references runs one token along.
            token = batch.input_ids[:1, :1]
            self._reference_pass(replace(batch, reference_ids=token, reference_mask=torch.ones_like(token)), start)
        if self.aligner is not None:
            self.aligner.offer(batch, step, others)
        elif self.training and self.connections and self.config.loss == "standardized" and not self.measured:
            raise UserError("align_loss: standardized: call keep_recorded() before the first step, as CCTrainer does.")
        index = flat_index(step.score)[0] if loss_only else None
        try:
            output = self._run(through, step.plan, index, input_ids=ids, attention_mask=mask, **kwargs)
        except Enough:
            return None
        output.logits = restore(output.logits, self.wire, step.plan)
        return output

    @property
    def fused_probability(self) -> float:
        """Probability of the fused pass now (`paths: sampled`): linear in the share of steps done."""
        done = min(1.0, self.step / max(1, (self.total_steps or 1) - 1))
        start, end = self.config.fused_probability_start, self.config.fused_probability_end
        return start + (end - start) * done

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        reference_input_ids: Tensor | None = None,
        reference_attention_mask: Tensor | None = None,
        reference_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`generate` of the model inside, as a student, or over the live connection for rows with a reference.

        Args:
            input_ids, attention_mask: (B, T) prompts, left-padded.
            reference_input_ids, reference_attention_mask: (R, S) references, padded on either side.
            reference_index: (B,) as in `forward`.
            kwargs: generation options of transformers.

        Raises:
            UserError: prompts padded on the right, or options under which the prompt's end cannot be told.
        """
        batch = Batch.prompts(
            input_ids, attention_mask, reference_input_ids, reference_attention_mask, reference_index
        )
        if self.config.scope != "all" or batch.reference_ids is not None:
            with_cache(kwargs)
        memory = self._reference_pass(batch) if batch.reference_ids is not None and self.wire.enabled else None
        planner = GenerationPlanner(self.config, batch.attention_mask, batch if memory else None, memory)
        with self._run.planned(planner):
            model: Any = self.model
            return model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **kwargs)

    # -- saving ------------------------------------------------------------------------------------------------------

    def connection_state(self) -> dict[str, Tensor]:
        """The connection's weights by name: `layers.<number>.<part>`."""
        return {
            f"layers.{number}.{name}": tensor
            for number, connection in self.connections.items()
            for name, tensor in connection.state_dict().items()
        }

    def load_connection_state(self, state: Mapping[str, Tensor], where: str = "connection") -> None:
        """Load what `connection_state` returned; where weights are sharded, each process its own share.

        Raises:
            UserError: names or shapes do not match this model's connection.
        """
        own = self.connection_state()
        odd = sorted(own.keys() ^ state.keys())
        if odd:
            raise UserError(f"{where}: its parts do not match this connection ({len(odd)} differ, first: {odd[0]}).")
        for name, tensor in own.items():
            read_into(tensor, state[name], f"{where}: {name}")
        self.measured = True

    def save_pretrained(self, directory: str | Path, base_trained: bool | None = None) -> None:
        """Write the connection (JSON and safetensors, nothing pickled), atomically; the base is saved by itself.

        Args:
            directory: created if missing.
            base_trained: whether the base's own weights differ from the checkpoint they came from (full fine-tuning);
                None: yes, if any of them is trainable.
        """
        serialization.save(self, Path(directory), base_trained)

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | Path) -> ConnectedModel:
        """Attach a saved connection to `model`: the base it was trained with, or its fine-tuned copy.

        Raises:
            UserError: the directory is incomplete, or holds the connection of another model.
        """
        return serialization.load(cls, model, Path(directory))

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, of the connection and of the base."""
        print(trainable_parameters(self.model, self.connections.values()))
