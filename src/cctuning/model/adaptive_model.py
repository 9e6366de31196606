"""The adaptive connection in a model: two passes and a choice of layer between them; it cannot be merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection.adaptive import AdaptiveConnection, Fit, StreamingLeastSquares
from cctuning.connection.plan import Plan, predicting, prompt_ends
from cctuning.connection.references import Anchor, Reference
from cctuning.model.connected import ConnectedModel
from cctuning.model.passes import Batch, Step, uniform
from cctuning.model.runner import NO_LOGITS, evaluating, first, no_gradient, with_cache
from cctuning.model.sites import Site, unwrap


class AdaptiveModel(ConnectedModel):
    """What `ConnectedModel.attach` returns for `connection: adaptive`.

    In training, and with a reference, rows connect to it live. Without one a first pass over the prompt gives the
    row's own FFN outputs, the matrix maps them to what the reference's would be, one layer is chosen, and a second
    pass runs with it. Rows in the reference language take no part: `connect` says which do. The loss is the LM loss of
    the connected pass alone, as in the paper's code.
    """

    mixes_references = False

    def _insert(self, sites: list[Site]) -> None:
        self._sites, self.width = sites[:1], sites[0].size
        self._register(sites[0], AdaptiveConnection(self.width, len(sites)))
        for site in sites:
            self._handles.append(site.block.register_forward_hook(self._recorder(site)))
        self._handles.append(sites[0].layer.register_forward_hook(self._inject))

    @property
    def adaptive(self) -> AdaptiveConnection:
        """The one module of the connection."""
        return next(iter(self.connections.values()))

    def _recorder(self, site: Site) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            plan = self.wire.plan
            if plan is not None and plan.reference is not None:
                hidden = first(output).reshape(plan.rows, plan.positions, -1)
                plan.results.memory[site.index] = Anchor().remember(hidden, hidden, plan.reference)

        return record

    def _inject(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan = self.wire.plan
        if plan is None or plan.injection is None or plan.connect_index is None:
            return output
        flat = first(output).reshape(-1, self.width)
        changed = flat.index_add(0, plan.connect_index, plan.injection.to(flat.dtype)).view_as(first(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    # -- plans -------------------------------------------------------------------------------------------------------

    def _plan_step(self, batch: Batch, rows: Tensor | int | None, *, whole: bool, loss_only: bool) -> Step:
        assert batch.labels is not None
        predict = predicting(batch.labels)
        live = self.training or not bool(self.adaptive.fitted)
        taking_part = self._taking_part(batch, live)
        plan = self._plan(batch, predict, live, taking_part)
        every = torch.arange(len(batch.input_ids), device=predict.device)
        tokens = (batch.input_ids, batch.attention_mask)
        count = len(batch.input_ids) if rows is None else rows
        return Step(*tokens, plan, every, taking_part & live, predict, predict, live, count)

    def _plan_inference(self, batch: Batch, predict: Tensor | None) -> Plan:
        live = self.training or batch.reference_input_ids is not None or not bool(self.adaptive.fitted)
        return self._plan(batch, predict, live, self._taking_part(batch, live))

    def _taking_part(self, batch: Batch, live: bool) -> Tensor:
        """(B,) bool: rows whose prompt is connected."""
        if not self.wire.enabled:
            return torch.zeros_like(batch.paired)
        if live or (batch.connect is None and batch.reference_input_ids is not None):
            return batch.paired
        return torch.ones_like(batch.paired) if batch.connect is None else batch.connect

    def _plan(self, batch: Batch, predict: Tensor | None, live: bool, rows: Tensor) -> Plan:
        """The plan of the main pass: what is added at the ends of the prompts of `rows` (B,) bool.

        `live`: connect to the reference; else to the row's own vectors, through the matrix.
        """
        ends, width = prompt_ends(batch.attention_mask, predict), batch.input_ids.shape[1]
        which = rows.nonzero()[:, 0]
        plan = Plan("connect", len(rows), width, connect_row=which, connect_index=which * width + ends[which])
        selector = self.adaptive.selector
        if live and batch.reference_input_ids is None:
            vectors = selector.weight.new_empty(0, selector.out_features, selector.in_features)
        elif live:
            vectors = self._reference_vectors(batch)[batch.reference_index[which]]
        else:  # of the prompt alone, so that labels cannot leak into the choice
            places = torch.arange(width, device=ends.device)
            own = self._vectors(batch.input_ids, batch.attention_mask * (places <= ends[:, None]), ends)
            vectors = own[which]
        noise = None
        if self.training and live:
            numbers = torch.arange(vectors.shape[1], device=batch.row.device)
            noise = uniform(self.seed, self.step, batch.row[which][:, None] * vectors.shape[1] + numbers)
        base: Any = unwrap(self.model)
        embedding = base.get_input_embeddings()(batch.input_ids[which, ends[which]])
        plan.injection, chosen = self.adaptive(vectors, embedding, not live, noise)
        plan.results.share = {layer: (chosen == layer).float().mean() for layer in range(vectors.shape[1])}
        return plan

    def _plan_generation(self, batch: Batch, options: dict[str, Any]) -> Callable[[int, int], Plan]:
        """A pass over the reference, or else over the prompt, comes before the prompt's own; then plain decoding."""
        with_cache(options)
        training, self.training = self.training, False
        try:
            prompt = [self._plan_inference(batch, None)]
        finally:
            self.training = training

        def planner(rows: int, positions: int) -> Plan:
            plan = Plan("connect", rows, positions)
            if prompt:
                known = prompt.pop()
                assert known.injection is not None and known.connect_row is not None
                repeat = rows // known.rows  # several sequences of a prompt
                at = (known.connect_row[:, None] * repeat + torch.arange(repeat, device=batch.row.device)).flatten()
                plan.connect_index = at * positions + positions - 1
                plan.injection = known.injection.repeat_interleave(repeat, dim=0)
            return plan

        return planner

    # -- first passes ------------------------------------------------------------------------------------------------

    @no_gradient()
    def _vectors(self, ids: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """FFN outputs of every layer at position `last` (R,) of each row of `ids` (R, S): (R, L, d)."""
        plan = Plan("record", ids.shape[0], ids.shape[1], reference=Reference(mask.bool(), last))
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if "position_ids" in signature(unwrap(self.model).forward).parameters:  # under left padding, as in `generate`
            inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        self._run(plan, NO_LOGITS, **inputs)
        return torch.stack([kept[0] for _, kept in sorted(plan.results.memory.items())], dim=1)

    def _reference_vectors(self, batch: Batch) -> Tensor:
        """(R, L, d) of the references of a batch, at their last tokens."""
        ids, mask = batch.reference_input_ids, batch.reference_attention_mask
        assert ids is not None and mask is not None
        return self._vectors(ids, mask, Reference.from_mask(mask).last)

    # -- the matrix --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_transform(self, batches: Iterable[dict[str, Tensor]], hold_out: float = 0.1) -> Fit:
        """Fit the matrix on the prompts of paired rows, by streaming least squares, and use it from now on.

        Args:
            batches: of `PairedCollator`, on the model's device.
            hold_out: share of the rows kept out of the fit, for its held-out error.
        """
        solver = StreamingLeastSquares(self.width)
        with evaluating(self):
            for batch in map(Batch.of, batches):
                if batch.reference_input_ids is None or batch.labels is None:
                    continue
                paired = batch.paired
                ends = prompt_ends(batch.attention_mask, predicting(batch.labels))
                own = self._vectors(batch.input_ids, batch.attention_mask, ends)[paired]
                theirs = self._reference_vectors(batch)[batch.reference_index[paired]]
                held = (uniform(self.seed, -1, batch.row[paired]) < hold_out)[:, None].expand(own.shape[:2])
                solver.add(own.flatten(0, 1), theirs.flatten(0, 1), held.flatten())
        fit = solver.solve()
        self.adaptive.set_matrix(fit.matrix)
        return fit
