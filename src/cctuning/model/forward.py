"""Run a connected model: the loss of a batch, logits of prompts and answers, and generation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig, Enough, Plan, Wire, answering, restore
from cctuning.connection.equations import fused_probability
from cctuning.errors import UserError
from cctuning.model.aligner import Aligner
from cctuning.model.live_references import LiveReferences, append_references
from cctuning.model.objective import ConnectedOutput, assemble
from cctuning.model.packing import check_connection, check_packing, pack
from cctuning.model.passes import Batch, GenerationPlanner, Step, flat_index, plan_inference, plan_step, uniform
from cctuning.model.recorded import RecordedReferences
from cctuning.model.runner import Runner, several_processes, with_cache
from cctuning.model.sites import unwrap
from cctuning.model.starting_weights import StartingWeights


class ConnectedForward(nn.Module):
    """The part of `ConnectedModel` that runs it; `_plan_step`, `_plan_inference` and `_plan_generation` differ between
    connections."""

    _run: Runner
    references: LiveReferences

    def __init__(self, model: PreTrainedModel, config: ConnectionConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.wire = Wire()
        self.step = 0
        self.total_steps: int | None = None
        self.seed = 0
        self.padding_free = False
        self._packs = False  # known once check_padding_free has passed
        self.start: StartingWeights | None = None
        self.recorded: RecordedReferences | None = None
        self.measured = False  # the references' spread, where the gated connection's error is in units of it
        self.aligner: Aligner | None = None

    @property
    def connections(self) -> dict[int, Any]:
        """Layer number -> connection of that layer."""
        raise NotImplementedError

    def check_padding_free(self) -> None:
        """Raise `UserError` if the model cannot run packed rows, or the options do not allow it."""
        check_connection(self.config)
        if not self._packs:
            before, self.wire.enabled = self.wire.enabled, False
            try:
                check_packing(self.model, lambda **inputs: self._run(None, None, None, use_cache=False, **inputs))
            finally:
                self.wire.enabled = before
            self._packs = True

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
        connect: Tensor | None = None,
        fused_rows: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_rows_in_batch: Tensor | int | None = None,
        loss_only: bool = False,
        through: nn.Module | None = None,
        **kwargs: Any,
    ) -> ConnectedOutput:
        """Loss and logits of a batch.

        Args:
            input_ids, attention_mask, labels: (B, T), right-padded in training; labels are -100 where no loss is. A
                row whose labels are all -100 has no response: it trains the alignment alone.
            reference_input_ids, reference_attention_mask: (R, S) the references, each ending where its prompt ends.
            reference_index: (B,) reference of each row, -1 for none (a row in the reference language); may be left out
                where R = B.
            reference_row: (B,) recorded reference of each row, -1 for none; replaces the three above after
                `keep_recorded`.
            text, reference_text: (B, 2) and (R, 2) first position of each prompt's own text and the one after its
                last; default: from the second token to the prompt's end.
            row: (B,) row ids for the draw of `paths: sampled`; default 0..B-1.
            connect: (B,) bool, see `generate`.
            fused_rows: (B,) bool; overrides that draw.
            prompt_lengths: (B,) without labels, tokens of each prompt where answers follow (rows padded on the right):
                the answer is then scored as `generate` would write it. Default: prompts end where the rows do.
            num_items_in_batch, num_rows_in_batch: response tokens and rows of the whole optimiser step, where it is
                accumulated or distributed; default: this batch's.
            loss_only: compute logits at scored positions only, and return none.
            through: module to call in place of the model inside (its DDP or DeepSpeed wrapper).
            kwargs: passed to the model.

        Without labels: logits of the student pass, or, for rows with a reference, of the live connection.
        """
        batch = Batch.build(
            input_ids,
            attention_mask,
            labels,
            reference_input_ids,
            reference_attention_mask,
            reference_index,
            reference_row=reference_row,
            text=text,
            reference_text=reference_text,
            row=row,
            connect=connect,
            fused=fused_rows,
        )
        if labels is None:
            predict = None if prompt_lengths is None else answering(batch.attention_mask, prompt_lengths)
            plan = self._plan_inference(batch, predict)
            output = self._run(None, plan, None, **batch.inputs, **kwargs)
            logits = restore(output.logits, self.wire, plan)
            return ConnectedOutput(logits=logits, past_key_values=getattr(output, "past_key_values", None))
        kwargs.setdefault("use_cache", False)
        step, rows = self._plan_step(batch, num_rows_in_batch)
        if self.aligner is not None:
            self.aligner.shorten(step, through is None or through is self.model, loss_only)
        kept = step.plan.kept
        index = flat_index(step.score if kept is None else step.score[kept])[0] if loss_only else None
        inputs = {"input_ids": step.input_ids, "attention_mask": step.attention_mask, **kwargs}
        if self.padding_free:
            self.check_padding_free()
            config = unwrap(self.model).config.get_text_config()
            step.packed = pack(step.input_ids, step.attention_mask, config, kept=kept)
            step.packed.apply(step.plan)
            index = step.packed.place[flat_index(step.score)[0]] if loss_only else None
            inputs = {**step.packed.inputs, **kwargs}
        if step.plan.stop and self.aligner is not None:
            with suppress(Enough):
                self._run(through, step.plan, index, **inputs)
            result = self.aligner.alone(batch, step)
            if result is not None and result.loss is not None:
                result.loss = restore(result.loss, self.wire, step.plan)
                return result
        output = self._run(through, step.plan, index, **inputs)
        if step.packed is not None and not loss_only:
            output.logits = step.packed.unpacked(output.logits)
        output.logits = restore(output.logits, self.wire, step.plan)
        return assemble(
            batch,
            step,
            output,
            self.config,
            num_items=num_items_in_batch,
            num_rows=rows,
            router_coefficient=getattr(unwrap(self.model).config.get_text_config(), "router_aux_loss_coef", 0.0),
            loss_only=loss_only,
        )

    def _plan_step(self, batch: Batch, rows: Tensor | int | None) -> tuple[Step, Tensor | int]:
        """The inputs of a forward with labels, and the number of rows that the alignment is averaged over."""
        connecting = self.config.connection != "none" and self.wire.enabled
        memory: dict[int, Tensor] = {}
        others: Tensor | None = None  # places of the recorded references to compare with
        if not connecting or (self.aligner and not self.training):  # an alignment is not evaluated
            batch = replace(batch, reference_ids=None, reference_index=torch.full_like(batch.reference_index, -1))
        elif self.recorded is None and self.training and batch.reference_row is not None:
            raise UserError("reference_row: no references are recorded; call keep_recorded() before the first step.")
        elif self.recorded is not None and self.training and batch.reference_row is not None:
            most = self.config.align_negatives if self.config.loss == "contrastive" else 0
            drawn = self.seed * 1_000_003 + self.step
            memory, index, others = self.recorded.offer(batch.reference_row, most, drawn)
            batch = replace(batch, reference_ids=None, reference_index=index)
        if (
            batch.fused is None
            and connecting
            and self.training
            and self.config.paths == "sampled"
            and self.connections
        ):
            batch = replace(batch, fused=uniform(self.seed, self.step, batch.ids) < self.fused_probability)
        if rows is None:  # an alignment is averaged over the rows that have a reference
            rows = int(batch.paired.sum().clamp(min=1)) if self.aligner else len(batch.input_ids)
        share = 1.0 / torch.as_tensor(rows, dtype=torch.float32, device=batch.input_ids.device) if connecting else None
        step = plan_step(batch, self.config, training=self.training, row_share=share)
        step.plan.memory = {layer: (vectors, None) for layer, vectors in memory.items()}
        self._run_references(batch, step)
        if self.aligner is not None:
            self.aligner.offer(batch, step, others)
        return step, rows

    def _run_references(self, batch: Batch, step: Step) -> None:
        """Run the references of a step where they are not recorded."""
        config, training = self.config, self.training
        if training and self.connections and config.loss == "standardized" and not self.measured:
            raise UserError("align_loss: standardized: call keep_recorded() before the first step, as CCTrainer does.")
        start = self.start if training and config.reference_weights != "current" else None
        if batch.reference_ids is not None and config.reference_gradient and training:
            append_references(step, batch)
        elif batch.reference_ids is not None:
            if training and config.reference_weights == "start" and self.start is None:
                raise UserError("reference_weights: start: call keep_start() before the first step.")
            self.references.offer(batch, step.plan, start)
        elif config.connection != "none" and several_processes():
            elsewhere = self.recorded is None and not config.reference_gradient if training else self.aligner is None
            if elsewhere:  # other processes may run references of theirs
                self.references.join(batch, start)

    def _plan_inference(self, batch: Batch, predict: Tensor | None) -> Plan:
        """The plan of a forward without labels; `predict` (B, T) marks positions that predict an answer token."""
        plan = plan_inference(batch, self.config, predict)
        if batch.reference_ids is not None and self.wire.enabled:
            self.references.offer(batch, plan)
        return plan

    @property
    def fused_probability(self) -> float:
        """Probability of the fused pass now (`paths: sampled`).

        Raises:
            UserError: it changes over training, and `total_steps` is not set.
        """
        start, end = self.config.fused_probability_start, self.config.fused_probability_end
        if self.total_steps is None and start != end:
            raise UserError(
                "paths: sampled anneals over training: set total_steps once, and step before each optimiser step."
            )
        return fused_probability(self.step, self.total_steps or 1, start, end)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        reference_input_ids: Tensor | None = None,
        reference_attention_mask: Tensor | None = None,
        reference_index: Tensor | None = None,
        connect: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`generate` of the model inside, as a student, or over the live connection for rows with a reference.

        Args:
            input_ids, attention_mask: (B, T) prompts, left-padded.
            reference_input_ids, reference_attention_mask: (R, S) references, padded on either side.
            reference_index: (B,) as in `forward`.
            connect: (B,) bool, rows that are not in the reference language; default all. Read where no reference is
                given, by the adaptive connection; a gated one answers alike either way.
            kwargs: generation options of transformers.

        Raises:
            UserError: prompts padded on the right, or options under which the prompt's end is not known.
        """
        references = (reference_input_ids, reference_attention_mask, reference_index)
        batch = Batch.prompts(input_ids, attention_mask, *references, connect=connect)
        with self._run.planned(self._plan_generation(batch, kwargs)):
            model: Any = self.model
            return model.generate(**batch.inputs, **kwargs)

    def _plan_generation(self, batch: Batch, options: dict[str, Any]) -> Callable[[int, int], Plan]:
        """Plans of the forwards of one `generate`; `options` of it may be changed."""
        live = batch.reference_ids is not None
        if self.config.scope != "all" or live:
            with_cache(options)
        memory = self.references.remember(batch) if live and self.wire.enabled else None
        return GenerationPlanner(self.config, batch.attention_mask, batch if memory else None, memory)
