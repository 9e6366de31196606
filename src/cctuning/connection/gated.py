"""One layer of the gated connection: modules inside a decoder layer that act on its FFN's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection import equations
from cctuning.connection.config import ConnectionConfig
from cctuning.connection.parts import ALIGNMENTS, DECISIONS, Alignment, build_transform
from cctuning.connection.plan import Plan, Wire, add_objective


class LayerConnection(nn.Module):
    """Decide, fuse and transform (`equations`) at one layer, on all rows of a pass at once.

    h is the FFN block's output before any norm or residual that follows; e is the reference activation that the
    position is offered (`Alignment`). Positions that are not connected, and rows that have no reference because they
    are in its language, have f = h, not detached: the error there is the size of what W adds. Rows on the fused path
    go on with f, the others with h W; both teach h W ~ f.
    """

    def __init__(self, config: ConnectionConfig, size: int, index: int, number: int, wire: Wire) -> None:
        """
        Args:
            size: d, the width of the FFN's output. index: number of the decoder layer.
            number: how many layers connect (the objective is their mean). wire: shared by all of them.
        """
        super().__init__()
        self.config, self.index, self.number, self.wire = config, index, number, wire
        self.alignment: Alignment = ALIGNMENTS[config.alignment]()
        self.decision = DECISIONS[config.decision](config, size)
        self.transform = build_transform(config, size)
        if config.loss == "standardized":  # of the references' activations, by dimension: the unit of the error
            # Not a buffer, for accelerate distributes only parameters of a sharded model.
            self.spread = nn.Parameter(torch.ones(size), requires_grad=False)
        # Traced by torch.compile, its backward would be compiled before the scale of the gradient is known. Here and
        # not at import, which would load the compiler for a command that trains nothing.
        self._add_objective = torch.compiler.disable(add_objective)
        if config.paths == "student":  # the target is detached and no row is fused: nothing can train the gate
            self.decision.requires_grad_(False)

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the FFN block (registered with kwargs): replaces the activation in its output."""
        plan = self.wire.plan
        if not self.wire.enabled or (plan is not None and plan.mode == "rest"):
            return output
        inputs = args[0] if args else next(iter(kwargs.values()))
        hidden = output[0] if isinstance(output, tuple) else output
        changed = self(hidden, inputs)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def forward(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """The activation that goes on, for FFN output `hidden` (B, T, d) or (B*T, d) and FFN input `inputs`."""
        plan = self.wire.plan
        if plan is None:
            if self.config.scope != "all":
                raise RuntimeError(
                    f"scope: {self.config.scope} needs to know where the prompt ends: call forward or generate of the "
                    "ConnectedModel, not of the model inside it."
                )
            return hidden if self.transform is None else equations.transform(hidden, self.transform)
        plan.check(hidden, self.index)
        if plan.mode == "record":
            grid = (plan.rows, plan.positions, -1)
            assert plan.reference is not None
            kept = self.alignment.remember(hidden.reshape(grid), inputs.reshape(grid), plan.reference)
            plan.results.memory[self.index] = kept
            return hidden
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self._connect(flat, inputs.reshape(flat.shape[0], -1), plan).view_as(hidden)

    def _connect(self, h: Tensor, x: Tensor, plan: Plan) -> Tensor:
        """Both paths over flat positions: `h` (B*T, d), `x` (B*T, k) -> (B*T, d)."""
        output, moved = self._transformed(h, plan)
        if plan.connect_index is None:
            return output
        own = reference = h[plan.connect_index]
        if (offered := plan.offered).memory:  # else no row has a reference
            assert plan.connect_reference is not None
            which, queries = plan.connect_reference, x[plan.connect_index]
            reference = self.alignment.offer(offered.memory[self.index], which, queries, offered.reference).to(own)
        share = self.decision(self._units(reference), self._units(own)).to(own)
        target = equations.fuse(own, reference, share)
        if plan.fused is not None:
            # A product with 0 or 1 rather than indexing: every trainable part stays in the graph whatever the draw,
            # as DDP requires.
            fused_here = plan.fused[plan.connect_row].to(h.dtype)[:, None]
            output = output.index_add(0, plan.connect_index, (target - own) * fused_here)
        if plan.row_weight is None:
            return output
        plan.results.share[self.index] = share.detach().float().mean() if len(own) else own.new_zeros(())
        term = self._objective(own, target.detach(), h.detach(), moved, plan)
        return self._add_objective(output, term, plan, self.index)

    def _transformed(self, h: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
        """`h W` where the transform acts, but `h` on rows of the fused path; and, where this pass has an objective,
        `||h W - h||^2` of each position: (B*T,) fp32, 0 where the transform does not act. `h` is copied once: with
        four copies and the errors read off them a whole step took 4 % longer (docs/results/performance.md)."""
        if self.transform is None:
            return h, None
        at, moved = plan.transform_index, None
        acted = h if at is None else h[at]
        if plan.row_weight is None:
            delta = self.transform(acted)
        else:
            delta, moved = self.transform.moved(acted)
        student = None
        if plan.fused is not None:  # 1 on rows of the student pass, of each position
            student = (~plan.fused).to(h.dtype)[:, None]
            student = student.repeat_interleave(plan.positions, 0) if plan.row_of is None else student[plan.row_of]
        if at is None:
            if student is None:
                return h + delta, moved
            return torch.addcmul(h, delta, student), moved
        if moved is not None:
            moved = moved.new_zeros(h.shape[0]).index_copy(0, at, moved)
        if student is not None:
            delta = delta * student[at]
        return h.index_add(0, at, delta), moved

    def _units(self, h: Tensor) -> Tensor:
        """`h` (N, d) in units of the references' spread, where the error is measured in them."""
        return h / self.spread.to(h.dtype) if self.config.loss == "standardized" else h

    def _objective(self, own: Tensor, target: Tensor, h: Tensor, moved: Tensor | None, plan: Plan) -> Tensor:
        """This layer's term of the loss, a scalar; the errors of the rows go to the results.

        Each row's error is relative to its own activations, so it does not depend on the other rows of the batch.
        """
        assert plan.connect_row is not None and plan.row_weight is not None
        changed = own.float()
        if self.transform is not None:  # these few positions once more, rather than a copy out of all of them
            changed = equations.transform(changed, self.transform)
        standardized = self.config.loss == "standardized"
        measure = equations.standardized_error if standardized else equations.relative_error
        error = measure(self._units(changed), self._units(target.float()), plan.connect_row, plan.rows)
        plan.results.align_error[self.index] = error.detach()
        scale = self.config.weight / self.number
        term = equations.objective(error, plan.row_weight, scale)
        if plan.identity_index is not None and plan.identity_row is not None and moved is not None:
            at, rows = plan.identity_index, plan.identity_row
            size = torch.linalg.vector_norm(h, dim=-1, dtype=torch.float32).square()
            strayed = equations.ratio(moved[at], size[at], rows, plan.rows)  # relative_error(h W, sg(h))
            plan.results.identity_error[self.index] = strayed.detach()
            term = term + equations.objective(strayed, plan.row_weight, scale * plan.identity_weight)
        return term
