"""The adaptive connection in a model: two passes and a choice of layer between them; it cannot be merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection.adaptive import AdaptiveConnection
from cctuning.connection.least_squares import Fit, StreamingLeastSquares
from cctuning.connection.plan import Plan, predicting, prompt_ends
from cctuning.connection.references import Anchor, Reference
from cctuning.model.connected import ConnectedModel
from cctuning.model.passes import Batch, Step, uniform
from cctuning.model.runner import NO_LOGITS, no_gradient, with_cache
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
        first = sites[0]
        self.width = first.size
        self._register(first, AdaptiveConnection(first.size, len(sites)))
        for site in sites:
            self._handles.append(site.block.register_forward_hook(self._recorder(site)))
        self._handles.append(first.layer.register_forward_hook(self._inject))
        self._sites = [first]

    @property
    def adaptive(self) -> AdaptiveConnection:
        """The one module of the connection."""
        return next(iter(self.connections.values()))

    def _recorder(self, site: Site) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            plan = self.wire.plan
            if plan is not None and plan.reference is not None:
                hidden = _hidden(output).reshape(plan.rows, plan.positions, -1)
                plan.results.memory[site.index] = Anchor().remember(hidden, hidden, plan.reference)

        return record

    def _inject(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan = self.wire.plan
        if plan is None or plan.injection is None or plan.connect_index is None:
            return output
        hidden = _hidden(output)
        flat = hidden.reshape(-1, hidden.shape[-1])
        changed = flat.index_add(0, plan.connect_index, plan.injection.to(flat.dtype)).view_as(hidden)
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
        """A pass over the reference, or else over the prompt, comes before the prompt's own."""
        with_cache(options)
        training, self.training = self.training, False
        try:
            return _InjectOnce(self._plan_inference(batch, None))
        finally:
            self.training = training

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
        assert batch.reference_input_ids is not None and batch.reference_attention_mask is not None
        last = Reference.from_mask(batch.reference_attention_mask).last
        return self._vectors(batch.reference_input_ids, batch.reference_attention_mask, last)

    def _own_vectors(self, batch: Batch) -> Tensor:
        """(B, L, d) of labelled rows, at the ends of their prompts."""
        assert batch.labels is not None
        ends = prompt_ends(batch.attention_mask, predicting(batch.labels))
        return self._vectors(batch.input_ids, batch.attention_mask, ends)

    # -- the matrix --------------------------------------------------------------------------------------------------

    def after_training(self, batches: Iterable[dict[str, Tensor]]) -> Fit:
        self.eval()
        return self.fit_transform(batches)

    @torch.no_grad()
    def fit_transform(self, batches: Iterable[dict[str, Tensor]], hold_out: float = 0.1) -> Fit:
        """Fit the matrix on the prompts of paired rows, by streaming least squares, and use it from now on.

        Args:
            batches: of `PairedCollator`, on the model's device.
            hold_out: share of the rows kept out of the fit, for its held-out error.
        """
        solver = StreamingLeastSquares(self.width)
        for inputs in batches:
            batch = Batch.of(inputs)
            if batch.reference_input_ids is None or batch.labels is None:
                continue
            own = self._own_vectors(batch)[batch.paired]
            theirs = self._reference_vectors(batch)[batch.reference_index[batch.paired]]
            held = (uniform(self.seed, -1, batch.row[batch.paired]) < hold_out)[:, None].expand(own.shape[:2])
            solver.add(own.flatten(0, 1), theirs.flatten(0, 1), held.flatten())
        fit = solver.solve()
        self.adaptive.set_matrix(fit.matrix)
        return fit


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


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
