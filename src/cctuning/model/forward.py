"""Run a connected model: the loss of a batch, logits of prompts and answers, and generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cctuning.connection import ConnectionConfig
from cctuning.connection.align import LayerAlignment, RecordedReferences, StopForward
from cctuning.connection.equations import fused_probability
from cctuning.connection.plan import Offered, Plan, Reference, Wire, answering, restore
from cctuning.errors import UserError
from cctuning.model.objective import ConnectedOutput, aligned_alone, assemble
from cctuning.model.packing import check_packing, pack
from cctuning.model.passes import (
    Batch,
    GenerationPlanner,
    Step,
    flat_index,
    plan_aligned_step,
    plan_inference,
    plan_step,
    prompt_spans,
    uniform,
)
from cctuning.model.runner import NO_LOGITS, Runner, no_gradient, several_processes, with_cache
from cctuning.model.sites import Site, unwrap

ATTRIBUTE = "cross_lingual_connection"  # name under which the connection of a layer is registered in it
PLAIN = ConnectionConfig("none")


class ConnectedForward(nn.Module):
    """The part of `ConnectedModel` that runs it; `_plan_step`, `_plan_inference` and `_plan_generation` differ between
    connections."""

    _run: Runner

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
        self.recorded: RecordedReferences | None = None
        self.measured = False  # whether the spread of the references is known
        self._sites: list[Site] = []
        self.aligned: dict[int, LayerAlignment] = {}
        self.may_leave = False  # rows without an answer skip the layers above the last aligned one

    @property
    def connections(self) -> dict[int, Any]:
        """Layer number -> connection of that layer."""
        return {site.index: getattr(site.layer, ATTRIBUTE) for site in self._sites}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Context manager: the model runs without its connection (a LoRA on the base stays on)."""
        before, self.wire.enabled = self.wire.enabled, False
        try:
            yield
        finally:
            self.wire.enabled = before

    def check_padding_free(self) -> None:
        """Raise `UserError` if the model cannot run packed rows, or the options do not allow it."""
        if not self._packs:
            with self.disable_adapter():
                check_packing(self.model, lambda **inputs: self._run(None, use_cache=False, **inputs))
            self._packs = True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        prompt_lengths: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_rows_in_batch: Tensor | int | None = None,
        loss_only: bool = False,
        through: nn.Module | None = None,
        **inputs: Any,
    ) -> ConnectedOutput:
        """Loss and logits of a batch.

        Args:
            input_ids, attention_mask, labels: and the others of `Batch`, among them `reference_input_ids`,
                `reference_attention_mask` and `reference_index`; what is not of a `Batch` is passed to the model.
            prompt_lengths: (B,) without labels, tokens of each prompt where answers follow (rows padded on the right):
                the answer is then scored as `generate` would write it. Default: prompts end where the rows do.
            num_items_in_batch, num_rows_in_batch: response tokens and rows of the whole optimiser step, where it is
                accumulated or distributed; default: this batch's.
            loss_only: compute logits at scored positions only, and return none.
            through: module to call in place of the model inside (its DDP or DeepSpeed wrapper).

        Without labels: logits of the student pass, or, for rows with a reference, of the live connection.
        """
        batch = Batch.take(inputs, input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        if labels is None:
            predict = None if prompt_lengths is None else answering(batch.attention_mask, prompt_lengths)
            plan = self._plan_inference(batch, predict)
            output = self._run(plan, **batch.inputs, **inputs)
            return ConnectedOutput(logits=restore(output.logits, self.wire, plan))
        whole = through is None or through is self.model
        step = self._plan_step(batch, num_rows_in_batch, whole=whole, loss_only=loss_only)
        config = unwrap(self.model).config.get_text_config()
        index = flat_index(step.score)[0] if loss_only else None
        tokens, packed = {"input_ids": step.input_ids, "attention_mask": step.attention_mask}, None
        if self.padding_free:
            self.check_padding_free()
            above = step.plan.above
            packed = pack(step.input_ids, step.attention_mask, config, whole=above.count if above else None)
            packed.apply(step.plan)
            index = packed.place[index] if index is not None else None
            tokens = packed.inputs
        with suppress(StopForward):
            output = self._run(step.plan, index, through, **tokens, **{"use_cache": False, **inputs})
        if step.plan.stop:
            result = aligned_alone(batch, step)
            assert result.loss is not None
            result.loss = restore(result.loss, self.wire, step.plan)
            return result
        if packed is not None and not loss_only:
            output.logits = packed.unpacked(output.logits)
        output.logits = restore(output.logits, self.wire, step.plan)
        return assemble(
            batch,
            step,
            output,
            self.config,
            num_items=num_items_in_batch,
            router_coefficient=getattr(config, "router_aux_loss_coef", 0.0),
            loss_only=loss_only,
        )

    # -- plans -------------------------------------------------------------------------------------------------------

    def _plan_step(self, batch: Batch, rows: Tensor | int | None, *, whole: bool, loss_only: bool) -> Step:
        """The inputs of a forward with labels.

        Args:
            rows: number of rows that the alignment is averaged over; None: the batch's.
            whole: the model is not wrapped. loss_only: no logits are returned.
        """
        config, training = self.config, self.training
        if not self.wire.enabled or (self.aligned and not training):  # an alignment is not evaluated
            config = PLAIN
        batch, offered = self._references(batch, config)
        if config.connection == "align":  # averaged over the rows that have a reference
            count = int(batch.paired.sum().clamp(min=1)) if rows is None else rows
            step = plan_aligned_step(batch, config, count, skip=self.may_leave and loss_only, end=self._may_end(whole))
        else:
            if config.connection == "gated" and training and config.paths == "sampled" and batch.fused_rows is None:
                batch = replace(batch, fused_rows=uniform(self.seed, self.step, batch.row) < self.fused_probability)
            count = len(batch.input_ids) if rows is None else rows
            step = plan_step(batch, config, count, training=training)
        if training and step.plan.row_weight is not None and config.loss != "relative" and not self.measured:
            raise UserError(
                f"align_loss: {config.loss} needs the spread of the references: call "
                "keep_recorded(cctuning.model.recorded.record(...)) before the first step, as CCTrainer does."
            )
        step.plan.offered = offered
        return step

    def _references(self, batch: Batch, config: ConnectionConfig) -> tuple[Batch, Offered]:
        """What the references of a batch with labels offer, and the batch with the place of each row's among them."""
        if config.connection == "none":
            return replace(batch, reference_input_ids=None, reference_row=None), Offered()
        if self.training and batch.reference_row is not None:
            if self.recorded is None:
                raise UserError(
                    "reference_row: no references are recorded; call keep_recorded() before the first step."
                )
            most = config.align_negatives if config.loss == "contrastive" else 0
            offered, index = self.recorded.offer(batch.reference_row, most, self.seed * 1_000_003 + self.step)
            return replace(batch, reference_input_ids=None, reference_index=index), offered
        if batch.reference_input_ids is not None:
            if self.training and config.reference_weights == "start":
                raise UserError(
                    "reference_weights: start: references run in this batch, through the current weights; give "
                    "reference_row after keep_recorded(), or set reference_weights: current."
                )
            return batch, self.reference_pass(batch)
        if several_processes() and not (self.training and self.recorded is not None):
            # Forwards of sharded weights are collective: run a token along with the references of other processes.
            self.reference_pass(replace(batch, reference_input_ids=batch.input_ids[:1, :1], reference_text=None))
        return batch, Offered()

    def reference_pass(self, batch: Batch) -> Offered:
        """Run the references once, without gradient, LM head or cache: what the layers keep of them.

        Never through a DDP wrapper: a rank may have no reference in its batch, and DDP's forward is collective.
        """
        ids, mask = batch.reference_input_ids, batch.reference_attention_mask
        assert ids is not None and mask is not None
        plan = Plan("record", ids.shape[0], ids.shape[1], reference=Reference.from_mask(mask))
        if self.aligned:
            plan.spans = prompt_spans(self.config.align_pool, mask, batch.reference_text)
            plan.stop = not several_processes()
        inputs = {"input_ids": ids, "attention_mask": mask}
        if not bool(mask[:, 0].all()) and "position_ids" in signature(unwrap(self.model).forward).parameters:
            inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)  # under left padding, as `generate`
        with no_gradient(), suppress(StopForward):
            self._run(plan, NO_LOGITS, use_cache=False, **inputs)
        return Offered(plan.results.memory, plan.reference)

    def _above(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before each layer above the last aligned one, also when it is recomputed for a checkpoint."""
        plan = self.wire.plan
        if plan is not None and plan.stop:
            raise StopForward
        if plan is None or plan.above is None:
            return None
        if not plan.above.tried:
            given = (*args, *kwargs.values())  # the activation first; of Gemma 3n it is (streams, B, T, d)
            divisible = given[0].dim() == 3 and plan.above.divides(given)
            plan.above = replace(plan.above, tried=True) if divisible else None  # None: these layers run all rows
            return self._above(module, args, kwargs)
        own = {name: value for name, value in plan.above.inputs.items() if name in kwargs}
        return plan.above.of(args), {name: plan.above.of(value) for name, value in kwargs.items()} | own

    def _may_end(self, whole: bool) -> bool:
        """Whether a forward may end after the last aligned layer: not with several processes or in a wrapped model
        (not `whole`), nor under reentrant checkpointing, which keeps no graph of what is collected on the side, nor
        where routers of all layers have a loss."""
        routed = getattr(unwrap(self.model).config.get_text_config(), "output_router_logits", False)
        if not whole or routed or several_processes():
            return False
        found: list[Any] = [m for m in unwrap(self.model).modules() if getattr(m, "gradient_checkpointing", False)]
        reentrant = any(m._gradient_checkpointing_func.keywords.get("use_reentrant", True) for m in found)
        return not (self.training and reentrant)

    def _plan_inference(self, batch: Batch, predict: Tensor | None) -> Plan:
        """The plan of a forward without labels; `predict` (B, T) marks positions that predict an answer token."""
        plan = plan_inference(batch, self.config, predict)
        if batch.reference_input_ids is not None and self.wire.enabled and not self.aligned:
            plan.offered = self.reference_pass(batch)
        return plan

    @property
    def fused_probability(self) -> float:
        """Probability of the fused pass now (`paths: sampled`)."""
        start, end = self.config.fused_probability_start, self.config.fused_probability_end
        if self.total_steps is None and start != end:
            raise UserError(
                "paths: sampled anneals over training: set total_steps once, and step before each optimiser step."
            )
        return fused_probability(self.step, self.total_steps or 1, start, end)

    # -- generation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        """`generate` of the model inside, as a student, or over the live connection for rows with a reference.

        Args:
            input_ids, attention_mask: (B, T) prompts, left-padded.
            inputs: `reference_input_ids`, `reference_attention_mask` (padded on either side), `reference_index` and
                `connect`, as in `Batch`; the rest are generation options of transformers.

        Raises:
            UserError: prompts padded on the right, or options under which the prompt's end is not known.
        """
        batch = Batch.take(inputs, input_ids=input_ids, attention_mask=attention_mask)
        if not bool(batch.attention_mask[:, -1].all()):
            raise UserError("generate: prompts are padded on the right; set tokenizer.padding_side = 'left'.")
        with self._run.planned(self._plan_generation(batch, inputs)):
            model: Any = self.model
            return model.generate(**batch.inputs, **inputs)

    def _plan_generation(self, batch: Batch, options: dict[str, Any]) -> Callable[[int, int], Plan]:
        """Plans of the forwards of one `generate`; `options` of it may be changed."""
        live = batch.reference_input_ids is not None and not self.aligned  # an aligned model is a plain one
        if self.config.scope != "all" or live:
            with_cache(options)
        offered = self.reference_pass(batch) if live and self.wire.enabled else None
        return GenerationPlanner(self.config, batch.attention_mask, batch.reference_index, offered)
