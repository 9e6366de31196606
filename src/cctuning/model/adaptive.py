"""The adaptive connection: what the authors' code of the paper does, without its errors (docs/method/paper-code.md).

The prompt runs twice, and one layer is chosen in between; it cannot be merged. The choice is argmax at inference (no
noise is drawn), and the noise of training is a function of seed, step and row.

The matrix is fitted by streaming least squares, in the memory of a few d x d matrices for any number of pairs: only
products are kept, summed in fp64. A tenth of the pairs is held out; their products are summed separately and give the
held-out error of any matrix. The ridge pulls towards the identity, and its strength is the one with the
smallest held-out error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cctuning.connection.parts import Anchor
from cctuning.connection.plan import Plan, predicting, prompt_ends
from cctuning.model.connected import ConnectedModel
from cctuning.model.passes import Batch, Step, uniform
from cctuning.model.runner import evaluating, first, with_cache
from cctuning.model.sites import Site, unwrap

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # relative to the mean eigenvalue of the Gram matrix


class AdaptiveConnection(nn.Module):
    """Choose one layer of the reference, and add its activation after the first layer.

    e_l in R^d                                   FFN output of layer l at the reference's last token
    s = D(mean_l (e_l + x)), D: d -> L           x: embedding of the row's last prompt token
    k = argmax_l s_l                             in training: straight-through Gumbel-softmax
    h_1 <- h_1 + e_k                             output of the first layer, at the row's last prompt token
    e_l ~ h_l M                                  at inference: from the row's own FFN outputs, one M for all layers

    Source: arXiv 2506.00875, as its authors' code implements it. Cannot be merged.
    """

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.selector = nn.Linear(size, layers, bias=False)
        self.matrix = nn.Linear(size, size, bias=False)  # M transposed; fitted, not trained
        nn.init.eye_(self.matrix.weight)
        self.matrix.weight.requires_grad_(False)
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def set_matrix(self, matrix: Tensor) -> None:
        """Use the fitted M (d, d), row convention."""
        self.matrix.weight.data.copy_(matrix.T)
        self.fitted.fill_(True)

    def forward(
        self, vectors: Tensor, embedding: Tensor, own: bool, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The activation to add (N, d), and the layers chosen (N,).

        Args:
            vectors: (N, L, d) FFN outputs at the last token of the reference or of the row's own prompt.
            embedding: (N, d) of the row's last prompt token.
            own: the vectors are the row's own, so they go through M.
            noise: (N, L) uniform in [0, 1) for the Gumbel noise of training; None: argmax.
        """
        vectors = vectors.to(self.selector.weight.dtype)
        if own:
            vectors = self.matrix(vectors)
        scores = self.selector((vectors + embedding[:, None].to(vectors.dtype)).mean(dim=1))
        if noise is None:
            chosen = scores.argmax(dim=-1)
            return vectors[torch.arange(len(chosen), device=chosen.device), chosen], chosen
        gumbel = -torch.log(-torch.log(noise.clamp(1e-10, 1 - 1e-7)))
        soft = (scores.float() + gumbel.to(scores.device)).softmax(dim=-1)
        chosen = soft.argmax(dim=-1)
        hard = nn.functional.one_hot(chosen, soft.shape[-1]).to(soft.dtype)
        weights = (hard + soft - soft.detach()).to(vectors.dtype)  # forward: hard; backward: soft
        return torch.einsum("nl,nld->nd", weights, vectors), chosen


@dataclass
class Fit:
    """A fitted matrix. Errors are relative: `||X M - Y||^2 / ||Y||^2`.

    Attributes:
        matrix: (d, d), fp32, row convention. pairs, held_out: numbers of pairs fitted on and held out.
        error, error_held_out: of the matrix. error_identity: held out, of doing nothing. ridge: the one chosen.
    """

    matrix: Tensor
    pairs: int
    held_out: int
    error: float
    error_held_out: float
    error_identity: float
    ridge: float


class _Products:
    """X'X, X'Z, tr(Z'Z), tr(Y'Y) and the number of pairs, where Z = Y - X."""

    def __init__(self, size: int) -> None:
        self.xx = torch.zeros(size, size, dtype=torch.float64)
        self.xz = torch.zeros(size, size, dtype=torch.float64)
        self.zz, self.yy, self.count = 0.0, 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Multiply pairs in fp32 (fp64 if they are), on their device; the sums stay in main memory."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        z = y - x
        with torch.autocast(x.device.type, enabled=False):
            self.xx += (x.T @ x).cpu()
            self.xz += (x.T @ z).cpu()
        self.zz += float(torch.linalg.vector_norm(z, dtype=torch.float64).square())
        self.yy += float(torch.linalg.vector_norm(y, dtype=torch.float64).square())
        self.count += len(x)

    def error(self, change: Tensor) -> float:
        """`||X D - Z||^2 / ||Y||^2` of the change D; of D = 0 that of the identity."""
        if not self.count:
            return float("nan")
        missed = float((change * (self.xx @ change - 2 * self.xz)).sum()) + self.zz
        return max(0.0, missed) / max(self.yy, 1e-30)


class StreamingLeastSquares:
    """`M = I + D`, `D = argmin ||X D - (Y - X)||^2 + r ||D||^2`, solved from `(X'X + r) D = X'(Y - X)`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fitted, self.held_out = _Products(size), _Products(size)

    def add(self, x: Tensor, y: Tensor, hold_out: Tensor) -> None:
        """Add pairs `x`, `y` (N, d); those of `hold_out` (N,) bool only count in the held-out error."""
        self.fitted.add(x[~hold_out], y[~hold_out])
        self.held_out.add(x[hold_out], y[hold_out])

    def solve(self) -> Fit:
        """The matrix with the smallest held-out error over `RIDGES`, or the identity if none is better."""
        fitted, held_out = self.fitted, self.held_out
        judge = held_out if held_out.count else fitted
        identity = torch.zeros_like(fitted.xx)
        best = (judge.error(identity), float("inf"), identity)
        for ridge in RIDGES if fitted.count else ():
            gram = fitted.xx.clone()
            gram.diagonal().add_(ridge * float(fitted.xx.diagonal().mean()))
            change = torch.cholesky_solve(fitted.xz, torch.linalg.cholesky(gram))
            best = min(best, (judge.error(change), ridge, change), key=lambda tried: tried[0])
        _, ridge, change = best
        return Fit(
            (torch.eye(self.size, dtype=torch.float64) + change).float(),
            fitted.count,
            held_out.count,
            fitted.error(change),
            held_out.error(change),
            held_out.error(identity),
            ridge,
        )


# -- in a model ------------------------------------------------------------------------------------------------------


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
            self._handles.append(site.block.register_forward_hook(partial(self._keep, site.index)))
        self._handles.append(sites[0].layer.register_forward_hook(self._inject))

    @property
    def adaptive(self) -> AdaptiveConnection:
        """The one module of the connection."""
        return next(iter(self.connections.values()))

    def _keep(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        plan = self.wire.plan
        if plan is not None and plan.reference is not None:
            hidden = first(output).reshape(plan.rows, plan.positions, -1)
            plan.results.memory[layer] = Anchor().remember(hidden, hidden, plan.reference)

    def _inject(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan = self.wire.plan
        if plan is None or plan.injection is None or plan.connect_index is None:
            return output
        plan.check(first(output), 0)
        flat = first(output).reshape(-1, self.width)
        changed = flat.index_add(0, plan.connect_index, plan.injection.to(flat.dtype)).view_as(first(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    # -- plans -------------------------------------------------------------------------------------------------------

    def _plan_step(self, batch: Batch, rows: Tensor | int | None, *, whole: bool, loss_only: bool) -> Step:
        assert batch.labels is not None
        predict = predicting(batch.labels)
        live = self.training or not bool(self.adaptive.fitted)
        plan = self._plan(batch, predict, live)
        assert plan.connect_row is not None
        every = torch.arange(plan.rows, device=predict.device)
        on_fused = torch.isin(every, plan.connect_row) & live
        tokens = (batch.input_ids, batch.attention_mask)
        return Step(*tokens, plan, every, on_fused, predict, predict, live, plan.rows if rows is None else rows)

    def _plan_inference(self, batch: Batch, predict: Tensor | None) -> Plan:
        live = self.training or batch.reference_input_ids is not None or not bool(self.adaptive.fitted)
        return self._plan(batch, predict, live)

    def _plan(self, batch: Batch, predict: Tensor | None, live: bool) -> Plan:
        """The plan of the main pass: what is added at the ends of the prompts of the rows that connect.

        `live`: connect to the reference; else to the row's own vectors, through the matrix.
        """
        ends, (count, width) = prompt_ends(batch.attention_mask, predict), batch.input_ids.shape
        rows = batch.paired
        if not live and (batch.connect is not None or batch.reference_input_ids is None):
            rows = torch.ones_like(rows) if batch.connect is None else batch.connect
        which = (rows & self.wire.enabled).nonzero()[:, 0]
        plan = Plan("connect", count, width, connect_row=which, connect_index=which * width + ends[which])
        selector = self.adaptive.selector
        if live and batch.reference_input_ids is None:
            vectors = selector.weight.new_empty(0, selector.out_features, selector.in_features)
        elif live:
            vectors = self._vectors(batch.reference_input_ids, batch.reference_attention_mask)
            vectors = vectors[batch.reference_index[which]]
        else:  # of the prompt alone, so that labels cannot leak into the choice
            vectors = self._vectors(batch.input_ids, _up_to(ends, batch.attention_mask))[which]
        noise = None
        if self.training and live:
            numbers = torch.arange(vectors.shape[1], device=batch.row.device)
            noise = uniform(self.seed, self.step, batch.row[which][:, None] * vectors.shape[1] + numbers)
        base: Any = unwrap(self.model)
        # (1, rows): a hook on the embeddings, such as NEFTune's, expects a batch of sequences.
        embedding = base.get_input_embeddings()(batch.input_ids[which, ends[which]][None])[0]
        plan.injection, chosen = self.adaptive(vectors, embedding, not live, noise)
        plan.results.share = {layer: (chosen == layer).float().mean() for layer in range(vectors.shape[1])}
        return plan

    def _plan_generation(self, batch: Batch, options: dict[str, Any]) -> Callable[[int, int], Plan]:
        """A pass over the reference, or else over the prompt, comes before the prompt's own; then plain decoding."""
        with_cache(options)
        with evaluating(self):
            prompt = [self._plan_inference(batch, None)]

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

    def _vectors(self, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """FFN outputs of every layer at the last token of each of the rows `ids` (R, S): (R, L, d)."""
        assert ids is not None
        memory = self.reference_pass(Batch(ids, reference_input_ids=ids, reference_attention_mask=mask)).memory
        return torch.stack([kept[0] for _, kept in sorted(memory.items())], dim=1)

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
            for batch in (Batch.take(dict(inputs)) for inputs in batches):
                if batch.reference_input_ids is None or batch.labels is None:
                    continue
                paired = batch.paired
                ends = prompt_ends(batch.attention_mask, predicting(batch.labels))
                own = self._vectors(batch.input_ids, _up_to(ends, batch.attention_mask))[paired]
                theirs = self._vectors(batch.reference_input_ids, batch.reference_attention_mask)
                theirs = theirs[batch.reference_index[paired]]
                held = (uniform(self.seed, -1, batch.row[paired]) < hold_out)[:, None].expand(own.shape[:2])
                solver.add(own.flatten(0, 1), theirs.flatten(0, 1), held.flatten())
        fit = solver.solve()
        self.adaptive.set_matrix(fit.matrix)
        return fit


def _up_to(ends: Tensor, mask: Tensor) -> Tensor:
    """The attention mask (B, T) without what follows the positions `ends` (B,)."""
    return mask * (torch.arange(mask.shape[1], device=mask.device) <= ends[:, None])
