"""The loss of a batch: LM losses from logits at scored positions, and the terms that the layers added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from cctuning.connection import ConnectionConfig, equations
from cctuning.connection.plan import total
from cctuning.model.passes import Batch, Step


@dataclass
class ConnectedOutput(ModelOutput):
    """What `ConnectedModel.forward` returns.

    Attributes:
        loss: scalar objective (training) or the student pass's LM loss (evaluation); None without labels.
        logits: (B, T, V), of the student pass, or of the live connection where a reference was given without labels;
            for `paths: sampled` in training, of the pass each row took. None where only the loss was asked for.
        student_loss, fused_loss: LM loss of either pass, mean per scored token; None where no row ran it.
        align_loss: alignment error of the option `align_loss`, mean over paired rows and layers (before its weight).
        identity_loss: error of the transform where it learns the identity, likewise.
        distill_loss: KL from the fused to the student pass, mean per row that has both.
        aux_loss: the model's own load-balancing loss (MoE), before its coefficient.
        decision: mean share of the reference over connected positions and layers; decisions: of each layer.
        correct, scored: number of tokens predicted right and number of tokens scored, over all passes.
        row_loss: (B,) LM loss of each row, summed over its tokens and its passes, detached.
        student_row_loss: likewise, of the student pass alone.
        align_row_loss: (B,) alignment error of each row, mean over layers; NaN for a row without one.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    student_loss: Tensor | None = None
    fused_loss: Tensor | None = None
    align_loss: Tensor | None = None
    identity_loss: Tensor | None = None
    distill_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    decision: Tensor | None = None
    decisions: dict[int, Tensor] | None = None
    correct: Tensor | None = None
    scored: Tensor | None = None
    row_loss: Tensor | None = None
    student_row_loss: Tensor | None = None
    align_row_loss: Tensor | None = None


def aligned_alone(batch: Batch, step: Step) -> ConnectedOutput:
    """The loss of a batch without any answer, whose forward ended after the last aligned layer."""
    nothing = torch.zeros((), dtype=torch.long, device=batch.input_ids.device)
    loss = torch.stack(list(step.plan.results.objective.values())).sum()
    result = ConnectedOutput(loss=loss, correct=nothing, scored=nothing, row_loss=loss.new_zeros(len(batch.row)))
    _report_alignment(step, len(batch.row), result)
    return result


def assemble(
    batch: Batch,
    step: Step,
    output: Any,
    config: ConnectionConfig,
    *,
    num_items: Tensor | int | None,
    router_coefficient: float,
    loss_only: bool,
) -> ConnectedOutput:
    """The loss and its parts, from the output of the forward that ran.

    Args:
        output: the model's, with logits (1, N, V) at scored positions if `loss_only`.
        num_items: response tokens of the whole optimiser step; None: this batch's.
        router_coefficient: of the model's own auxiliary loss.
    """
    scored = output.logits[0] if loss_only else output.logits[step.score]
    running, rows = step.source.shape[0], len(batch.input_ids)
    nll, tokens, right = token_losses(scored, batch, step)
    counted = torch.ones_like(step.on_fused) if step.trains else ~step.on_fused  # evaluation is the student's
    once = ~step.on_fused if running > rows else torch.ones_like(step.on_fused)  # count a row's tokens once
    divisor = torch.as_tensor(tokens[once].sum() if num_items is None else num_items, device=nll.device).clamp(min=1)
    # Where nothing is scored this is a zero with a graph: the gradient of the alignment is still added to it.
    loss = nll[counted].sum() / divisor
    row_loss = nll.detach().new_zeros(rows)
    result = ConnectedOutput(
        student_loss=_mean(nll, tokens, ~step.on_fused),
        fused_loss=_mean(nll, tokens, step.on_fused),
        aux_loss=getattr(output, "aux_loss", None),
        correct=right[counted].sum(),
        scored=tokens[counted].sum(),
        row_loss=row_loss.index_add(0, step.source, nll.detach()),
        student_row_loss=row_loss.index_add(0, step.source, nll.detach() * ~step.on_fused),
    )
    whole = torch.as_tensor(step.rows, device=nll.device)
    if config.distill_weight > 0 and bool(step.on_fused.any()):
        divergence, taught = distillation(scored, step)
        result.distill_loss = (divergence / taught.clamp(min=1)).detach()
        if step.trains:
            loss = loss + config.distill_weight * divergence / whole
    if result.aux_loss is not None and step.trains:
        share = tokens[once].sum() / divisor  # of the optimiser step
        loss = loss + router_coefficient * result.aux_loss * share
    _report_alignment(step, rows, result)
    if step.plan.row_weight is not None and step.trains:
        loss = total(loss, step.plan)
    result.loss = loss
    if not loss_only:  # the student copies come last; references that ran in the same batch come after them
        result.logits = output.logits[running - rows : running, : batch.input_ids.shape[1]]
    return result


def _report_alignment(step: Step, rows: int, result: ConnectedOutput) -> None:
    plan, found = step.plan, step.plan.results
    if found.identity_error:
        result.identity_loss = torch.stack([error.mean() for error in found.identity_error.values()]).mean()
    if not found.align_error or plan.row_weight is None:
        return
    paired = plan.row_weight > 0
    if plan.connect_row is not None:  # gated: every row has a weight
        paired = torch.zeros_like(paired).index_fill(0, plan.connect_row, True)
    if bool(paired.any()):
        errors = torch.stack(list(found.align_error.values())).mean(dim=0)
        result.align_loss = errors[paired].mean()
        result.align_row_loss = errors.new_full((rows,), torch.nan).index_copy(0, step.source[paired], errors[paired])
        if found.share:
            result.decisions, result.decision = found.share, torch.stack(list(found.share.values())).mean()


def _mean(nll: Tensor, tokens: Tensor, which: Tensor) -> Tensor | None:
    """Mean loss per token of the running rows `which`; None where they score nothing."""
    count = tokens[which].sum()
    return (nll[which].sum() / count).detach() if bool(count > 0) else None


def token_losses(logits: Tensor, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """LM loss of each running row, from logits (N, V) at the true entries of `step.score`, in row-major order.

    Returns:
        Of each running row (A,): negative log-likelihood summed over its tokens; the number of tokens; how many of
        them were predicted right.
    """
    assert batch.labels is not None
    row, position = step.score.nonzero(as_tuple=True)
    running = step.source.shape[0]
    predict = step.predict[row, position]
    of = row[predict]
    wanted = batch.labels[step.source[of], position[predict] + 1]
    scored = logits if len(of) == len(logits) else logits[predict]
    losses: Tensor = CrossEntropy.apply(scored, wanted)
    tokens = torch.bincount(of, minlength=running)
    hits = (scored.argmax(dim=-1) == wanted).long()
    return equations.row_sums(losses, of, running), tokens, equations.row_sums(hits, of, running)


class CrossEntropy(torch.autograd.Function):
    """Negative log-likelihood (N,), fp32, of `wanted` (N,) under logits (N, V) of any floating dtype.

    As `nn.functional.cross_entropy`, a block of positions at a time: beside the logits and their gradient, in their
    own dtype, no (N, V) tensor in fp32 is held.
    """

    BLOCK = 1 << 26  # entries in fp32 at once

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        rows = max(1, CrossEntropy.BLOCK // logits.shape[1])
        total = [block.float().logsumexp(dim=1) for block in logits.split(rows)]
        normaliser = torch.cat(total)
        ctx.save_for_backward(logits, wanted, normaliser)
        return normaliser - logits.gather(1, wanted[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, wanted, normaliser = ctx.saved_tensors
        rows = max(1, CrossEntropy.BLOCK // logits.shape[1])
        found = torch.empty_like(logits)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            probability = (logits[part].float() - normaliser[part, None]).exp_()
            probability.scatter_add_(1, wanted[part, None], torch.full_like(wanted[part, None], -1, dtype=torch.float))
            found[part] = probability.mul_(gradient[part, None])
        return found, None


def distillation(logits: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Mean over rows with both passes of KL(fused || student), the teacher detached: sum (scalar), rows (scalar).

    A row's value is its mean over positions: response tokens, or the prompt's end where it has no response. The fused
    copies come first and in the order of the rows they copy, so the two sides' positions pair up one by one.
    """
    row, _ = step.score.nonzero(as_tuple=True)
    teachers = step.on_fused
    taught = torch.zeros_like(teachers)
    taught[~teachers] = torch.isin(step.source[~teachers], step.source[teachers])
    divergence = equations.distillation(logits[teachers[row]], logits[taught[row]])
    owner = row[taught[row]]
    mean = equations.ratio(divergence, torch.ones_like(divergence), owner, step.source.shape[0])
    return mean.sum(), taught.sum()
