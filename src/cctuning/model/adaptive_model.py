"""ConnectedModel over the adaptive connection: two passes, a choice between them, nothing to fold."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from cctuning.connection import (
    AdaptiveConnection,
    Fit,
    Plan,
    Reference,
    StreamingLeastSquares,
    answering,
    predicting,
    prompt_ends,
    remember,
    restore,
)
from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel
from cctuning.model.objective import ConnectedOutput, assemble
from cctuning.model.passes import Batch, Step, uniform
from cctuning.model.runner import Runner, no_gradient, with_cache
from cctuning.model.sites import Site, find_sites, unwrap


class AdaptiveModel(ConnectedModel):
    """What `ConnectedModel.attach` returns for `connection: adaptive`; same verbs, and `fit_transform`.

    At inference a first pass over the prompt gives the row's own FFN outputs, the matrix turns them into what the
    reference's would be, one layer is chosen, and a second pass runs with it: in `generate` over the prompt's last
    token alone. Rows in the reference language take no part: pass `connect` to say which do.
    """

    def _insert(self) -> None:
        sites = find_sites(self.model)
        first = sites[0]
        self._register(first, AdaptiveConnection(first.size, len(sites)))
        for site in sites:
            self._handles.append(site.block.register_forward_hook(self._recorder(site)))
        self._handles.append(first.layer.register_forward_hook(self._inject))
        self._sites = [first]
        self._run = Runner(self.model, self.wire)
        self._handles += self._run.handles

    @property
    def adaptive(self) -> AdaptiveConnection:
        """The connection's one module."""
        return next(iter(self.connections.values()))

    def _recorder(self, site: Site) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            plan = self.wire.plan
            if plan is not None and plan.mode == "record" and plan.reference is not None:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden.reshape(plan.rows, plan.positions, -1)
                plan.memory[site.index] = remember("anchor", hidden, hidden, plan.reference)

        return record

    def _inject(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan = self.wire.plan
        if plan is None or plan.injection is None or plan.connect_index is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        flat = hidden.reshape(-1, hidden.shape[-1])
        changed = flat.index_add(0, plan.connect_index, plan.injection.to(flat.dtype)).view_as(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _vectors(self, ids: Tensor, mask: Tensor, last: Tensor, gradient: bool) -> Tensor:
        """FFN outputs of every layer at position `last` (R,) of each row of `ids` (R, S): (R, L, d)."""
        plan = Plan("record", ids.shape[0], ids.shape[1], reference=Reference(mask.bool(), last))
        with nullcontext() if gradient else no_gradient():
            nothing = ids.new_empty(0)
            self._run(None, plan, nothing, input_ids=ids, attention_mask=mask, use_cache=False)
            vectors = torch.stack([plan.memory[layer][0] for layer in sorted(plan.memory)], dim=1)
        if gradient and not vectors.requires_grad:
            raise UserError(
                "reference_gradient: the adaptive connection's first pass has no gradient under reentrant gradient "
                "checkpointing; set gradient_checkpointing_kwargs: {use_reentrant: false}, or leave it off."
            )
        return restore(vectors, self.wire, plan)

    def _prefill(self, batch: Batch) -> tuple[Tensor, Any]:
        """Run left-padded prompts once: their own vectors (B, L, d), and the cache of all but their last tokens.

        What is added stands after the first layer at a prompt's last token, and no token before it sees that: the
        second pass needs to run this one token only. None in place of the cache where it cannot be shortened.
        """
        mask = batch.attention_mask
        last = torch.full_like(mask[:, 0], mask.shape[1] - 1)
        plan = Plan("record", mask.shape[0], mask.shape[1], reference=Reference(mask.bool(), last))
        inputs = {"input_ids": batch.input_ids, "attention_mask": mask, "use_cache": True}
        if (
            "position_ids" in signature(unwrap(self.model).forward).parameters
        ):  # under left padding, as `generate` does
            inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        output = self._run(None, plan, mask.new_empty(0), **inputs)
        vectors = torch.stack([plan.memory[layer][0] for layer in sorted(plan.memory)], dim=1)
        cache = getattr(output, "past_key_values", None)
        if not isinstance(cache, Cache) or not cache.is_croppable or mask.shape[1] < 2:
            return vectors, None
        try:
            cache.crop(-1)
        except RuntimeError:  # a sliding window that is full has dropped what it would need
            return vectors, None
        return vectors, cache

    def _plan(
        self,
        batch: Batch,
        predict: Tensor | None,
        live: bool,
        rows: Tensor,
        ids: Tensor,
        own: Tensor | None = None,
    ) -> Plan:
        """The plan of the main pass: what is added at the ends of the prompts of `rows` (B,) bool.

        Args:
            own: (B, L, d) the rows' own vectors, where they are known already.
        """
        ends = prompt_ends(batch.attention_mask, predict)
        which = rows.nonzero()[:, 0]
        plan = Plan("connect", *batch.input_ids.shape)
        plan.connect_row, plan.connect_index = which, which * batch.input_ids.shape[1] + ends[which]
        noise = None
        if live and batch.reference_ids is not None and batch.reference_mask is not None:
            last = Reference.from_mask(batch.reference_mask).last
            gradient = self.config.reference_gradient and self.training
            vectors = self._vectors(batch.reference_ids, batch.reference_mask, last, gradient)
            vectors = vectors[batch.reference_index[which]]
        elif live:
            layers = self.adaptive.selector.out_features
            vectors = self.adaptive.selector.weight.new_empty(0, layers, self.adaptive.selector.in_features)
        elif own is not None:
            vectors = own[which]
        else:
            # The prompt alone: what follows its end is masked out, so that labels cannot leak into the choice.
            places = torch.arange(batch.input_ids.shape[1], device=ends.device)
            prompt = batch.attention_mask * (places <= ends[:, None])
            vectors = self._vectors(batch.input_ids, prompt, ends, False)[which]
        if self.training and live:
            numbers = torch.arange(vectors.shape[1], device=ids.device)
            noise = uniform(self.seed, self.step, ids[which][:, None] * vectors.shape[1] + numbers)
        base: Any = unwrap(self.model)
        tokens = batch.input_ids[which, ends[which]]
        plan.injection, chosen = self.adaptive(vectors, base.get_input_embeddings()(tokens), not live, noise)
        plan.share = {layer: (chosen == layer).float().mean() for layer in range(vectors.shape[1])}
        return plan

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        reference_input_ids: Tensor | None = None,
        reference_attention_mask: Tensor | None = None,
        reference_index: Tensor | None = None,
        *,
        row: Tensor | None = None,
        connect: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_rows_in_batch: Tensor | int | None = None,
        loss_only: bool = False,
        through: nn.Module | None = None,
        **kwargs: Any,
    ) -> ConnectedOutput:
        """As `ConnectedModel.forward`; the objective is the LM loss of the connected pass alone (the paper's form).

        Args:
            connect: (B,) bool, rows that take part where no reference is given; default all.

        In training, and with a reference, rows connect to it live; else to their own activations through the matrix.
        """
        batch = Batch.build(
            input_ids, attention_mask, labels, reference_input_ids, reference_attention_mask, reference_index
        )
        kwargs.setdefault("use_cache", False)
        predict = None if labels is None else predicting(labels)
        live = self.training or (labels is None and batch.reference_ids is not None) or not bool(self.adaptive.fitted)
        rows = batch.paired if live or (connect is None and batch.reference_ids is not None) else connect
        rows = torch.ones_like(batch.paired) if rows is None else rows
        if not self.wire.enabled:
            rows = torch.zeros_like(rows)
        ids = torch.arange(len(input_ids), device=input_ids.device) if row is None else row
        after = predict
        if after is None and prompt_lengths is not None:
            after = answering(batch.attention_mask, prompt_lengths)
        plan = self._plan(batch, after, live, rows, ids)
        step_mask = predict if predict is not None else torch.zeros_like(batch.attention_mask, dtype=torch.bool)
        index = step_mask.flatten().nonzero()[:, 0] if loss_only else None
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **kwargs}
        output = self._run(through, plan, index, **inputs)
        output.logits = restore(output.logits, self.wire, plan)
        if predict is None:
            return ConnectedOutput(logits=output.logits, past_key_values=getattr(output, "past_key_values", None))
        every = torch.arange(len(input_ids), device=input_ids.device)
        step = Step(batch.input_ids, batch.attention_mask, plan, every, rows & live, predict, predict)
        text = unwrap(self.model).config.get_text_config()
        return assemble(
            batch,
            step,
            output,
            self.config,
            training=self.training or live,
            num_items=num_items_in_batch,
            num_rows=len(input_ids) if num_rows_in_batch is None else num_rows_in_batch,
            router_coefficient=getattr(text, "router_aux_loss_coef", 0.0),
            loss_only=loss_only,
        )

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
        """As `ConnectedModel.generate`, batched. With a reference, its pass and the prompt's; without one, a pass over
        the prompt and one more token (beams, assistants and caches of the caller's own: two passes over the prompt).

        Args:
            connect: (B,) bool, rows that take part where no reference is given; default all (leave out rows in the
                reference language).
        """
        batch = Batch.prompts(
            input_ids, attention_mask, reference_input_ids, reference_attention_mask, reference_index
        )
        with_cache(kwargs)
        live = batch.reference_ids is not None
        rows = batch.paired if live else torch.ones_like(batch.paired) if connect is None else connect
        if not self.wire.enabled:
            rows = torch.zeros_like(rows)
        training, self.training = self.training, False
        try:
            own = None
            if not live and self.wire.enabled and self._decodes_plainly(kwargs):
                own, cache = self._prefill(batch)
                if cache is not None:
                    kwargs["past_key_values"] = cache
            plan = self._plan(batch, None, live, rows, torch.arange(len(input_ids), device=input_ids.device), own)
            with self._run.planned(_InjectOnce(plan)):
                model: Any = self.model
                return model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **kwargs)
        finally:
            self.training, self.wire.plan = training, None

    def _decodes_plainly(self, kwargs: dict[str, Any]) -> bool:
        """Whether `generate` with these options takes a cache that is filled already: one sequence a prompt, token by
        token, in a cache of transformers' choosing."""
        model: Any = self.model
        config = kwargs.get("generation_config") or model.generation_config

        def given(name: str) -> Any:
            return kwargs.get(name, getattr(config, name, None))

        special = ("past_key_values", "cache_implementation", "assistant_model", "prompt_lookup_num_tokens")
        several = any((given(name) or 1) > 1 for name in ("num_beams", "num_return_sequences"))
        return not several and all(given(name) is None for name in special)

    @torch.no_grad()
    def fit_transform(self, batches: Iterable[dict[str, Tensor]], hold_out: float = 0.1) -> Fit:
        """Fit the matrix on the prompts of paired rows, by streaming least squares, and take it into use.

        Args:
            batches: of `PairedCollator`, on the model's device.
            hold_out: share of the rows kept out of the fit, for its held-out error.
        """
        solver = StreamingLeastSquares(self.adaptive.selector.in_features)
        for inputs in batches:
            batch = Batch.build(
                inputs["input_ids"],
                inputs.get("attention_mask"),
                inputs.get("labels"),
                inputs.get("reference_input_ids"),
                inputs.get("reference_attention_mask"),
                inputs.get("reference_index"),
            )
            if batch.reference_ids is None or batch.reference_mask is None or batch.labels is None:
                continue
            ends = prompt_ends(batch.attention_mask, predicting(batch.labels))
            own = self._vectors(batch.input_ids, batch.attention_mask, ends, False)[batch.paired]
            last = Reference.from_mask(batch.reference_mask).last
            theirs = self._vectors(batch.reference_ids, batch.reference_mask, last, False)
            theirs = theirs[batch.reference_index[batch.paired]]
            ids = inputs.get("row", torch.arange(len(batch.input_ids)))[batch.paired]
            held = (uniform(self.seed, -1, ids) < hold_out)[:, None].expand(own.shape[:2])
            solver.add(own.flatten(0, 1), theirs.flatten(0, 1), held.flatten())
        fit = solver.solve()
        self.adaptive.set_matrix(fit.matrix)
        return fit


class _InjectOnce:
    """Plans of one `generate`: the injection at the prefill's last position, then plain decoding."""

    def __init__(self, plan: Plan) -> None:
        self.plan: Plan | None = plan

    def __call__(self, rows: int, positions: int) -> Plan:
        plan, self.plan = self.plan, None
        if plan is None or plan.injection is None or plan.connect_row is None:
            return Plan("connect", rows, positions)
        repeat = rows // plan.rows
        copies = torch.arange(repeat, device=plan.connect_row.device)
        at = (plan.connect_row[:, None] * repeat + copies).flatten()
        grown = Plan("connect", rows, positions, connect_index=at * positions + positions - 1)
        grown.injection = plan.injection.repeat_interleave(repeat, dim=0)
        return grown
