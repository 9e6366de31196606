"""Run the rows of a batch without padding between them: TRL's `padding_free`, and the layout of its `packing`.

A batch keeps its padded rows of token ids, and the plan of a pass is made from those. Only the model sees another
layout: rows end to end, each with positions from 0, by which transformers keeps them apart: a block-diagonal mask for
sdpa and eager (`masking_utils.find_packed_sequence_indices`), the varlen interface for FlashAttention. `Packed.place`
maps the flat positions of the padded rows to those of the layout; the plan's indices go through it, and all that
follows the forward is the same as for padded rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested

from cctuning.connection.plan import Above, Plan
from cctuning.errors import UserError
from cctuning.model.runner import evaluating, no_gradient
from cctuning.model.sites import innermost, unwrap


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: bins of places of `lengths`, each with at most `capacity` in all.

    A length above the capacity gets a bin of its own. How many bins there are does not depend on the order of equal
    lengths.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # room left -> bins
    rooms: list[int] = []  # sorted
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        at = bisect_left(rooms, length)
        if at == len(rooms):
            number, room = len(bins), max(capacity, length)
            bins.append([])
        else:
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        bins[number].append(place)
        if room > length:
            if not with_room[room - length]:
                insort(rooms, room - length)
            with_room[room - length].append(number)
    return bins


@dataclass(frozen=True)
class Packed:
    """A rows of T positions, laid out as L sequences of W positions, N = L * W.

    Attributes:
        inputs: arguments of the model's forward.
        place: (A * T,) flat position in the layout of each position of the padded rows; 0 at padding.
        real: flat positions of the padded rows that are no padding.
        row_of: (N,) row of each flat position of the layout; 0 at padding.
        above: the part of the layout that has the rows which run through all layers; None: all of it.
        shape: A and T.
    """

    inputs: dict[str, Any]
    place: Tensor
    real: Tensor
    row_of: Tensor
    above: Above | None
    shape: tuple[int, int]

    def apply(self, plan: Plan) -> None:
        """Make `plan`, which is of the padded rows, one of this layout."""
        for name in ("transform_index", "connect_index", "identity_index"):
            index = getattr(plan, name)
            setattr(plan, name, None if index is None else self.place[index])
        if plan.spans is not None:
            plan.spans = replace(plan.spans, index=self.place[plan.spans.index])
        plan.row_of, plan.above = self.row_of, self.above

    def unpacked(self, values: Tensor) -> Tensor:
        """`values` (L, W, V) of the layout at the padded rows (A, T, V), 0 at padding."""
        found = values.new_zeros(self.shape[0] * self.shape[1], values.shape[-1])
        return found.index_copy(0, self.real, values.flatten(0, 1)[self.place[self.real]]).view(*self.shape, -1)


def pack(ids: Tensor, mask: Tensor, config: Any, one: bool = False, whole: int | None = None) -> Packed:
    """Lay out rows of tokens without padding.

    Args:
        ids, mask: (A, T) padded rows.
        config: of the text part of the model that they are for.
        one: all in one sequence, whatever the attention.
        whole: the first so many rows run through all layers; they share no sequence with the others. None: all rows.
    """
    real = mask.bool()
    lengths = real.sum(dim=1)
    extra: dict[str, Any] = {}
    above = None
    balances = getattr(config, "output_router_logits", False)
    if config._attn_implementation in (None, "eager", "sdpa") and not one and not balances:
        rows = range(len(ids))
        starts, shape, lanes = _lanes(lengths.tolist(), config.hidden_size, [rows[:whole], rows[whole or len(ids) :]])
        first = torch.tensor(starts, device=ids.device)
        if whole is not None:
            above = Above(0, shape[0], lanes)
    else:  # nothing is computed between rows; and padding would count in the load balance of experts
        ends = lengths.cumsum(dim=0)
        first, shape = ends - lengths, (1, int(ends[-1]))
        flash = is_flash_attention_requested(config)
        if flash:
            extra = _varlen(lengths)
        if whole is not None:
            above = Above(1, shape[1], int(ends[whole - 1]), _varlen(lengths[:whole]) if flash else {})
    within = real.cumsum(dim=1) - 1
    place = ((first[:, None] + within) * real).flatten()
    filled = real.flatten().nonzero()[:, 0]
    at = place[filled]

    def laid_out(values: Tensor) -> Tensor:
        return values.new_zeros(shape[0] * shape[1]).index_copy(0, at, values.flatten()[filled])

    row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    token = ids[real][0]  # between rows; the padding token's vector may be 0, where Gemma 3n has no gradient
    inputs = {"input_ids": (laid_out(ids - token) + token).view(shape), "position_ids": laid_out(within).view(shape)}
    return Packed(inputs | extra, place, filled, laid_out(row), above, (ids.shape[0], ids.shape[1]))


def rows_separable(config: Any) -> bool:
    """Whether rows may be selected from the inputs of a decoder layer, as far as the config tells (the inputs decide
    too: `Above.divides`): not without rotary positions, nor beside an auxiliary loss over the routing of all rows."""
    rotary = getattr(config, "rope_parameters", None) is not None
    return rotary and getattr(config, "router_aux_loss_coef", None) is None


def _varlen(lengths: Tensor) -> dict[str, Any]:
    """What FlashAttention's varlen interface is told of rows of these lengths, one after the other."""
    ends = torch.nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).int()
    longest = int(lengths.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _lanes(lengths: list[int], size: int, groups: Sequence[Sequence[int]]) -> tuple[list[int], tuple[int, int], int]:
    """Where each row starts, the number and width of the sequences, and how many of them hold the first group, for
    attention that computes a whole square. Rows of different groups do not share a sequence.

    Of some widths the one that computes least: a token costs 24 size^2 operations in the matrices of a layer, and
    4 size * width in its attention.
    """
    found = []
    for capacity in {max(lengths), 2 * max(lengths), 4 * max(lengths), sum(lengths)}:
        packed = [
            [[group[place] for place in lane] for lane in best_fit([lengths[row] for row in group], capacity)]
            for group in groups
        ]
        lanes = [lane for of_group in packed for lane in of_group]
        width = max(sum(lengths[row] for row in lane) for lane in lanes)
        found.append((len(lanes) * width * (6 * size + width), width, lanes, len(packed[0])))
    _, width, lanes, of_first = min(found, key=lambda one: one[0])
    starts = [0] * len(lengths)
    for number, lane in enumerate(lanes):
        at = number * width
        for row in lane:
            starts[row], at = at, at + lengths[row]
    return starts, (len(lanes), width), of_first


def check_packing(model: nn.Module, run: Callable[..., Any]) -> None:
    """Run a few tokens to see that rows packed into one sequence do not reach each other.

    `run` is the forward of `model`, without a connection.
    """
    base = unwrap(model)
    config, device = base.config.get_text_config(), next(model.parameters()).device
    embedding: Any = innermost(base.get_input_embeddings())
    vocabulary = getattr(embedding, "original_module", embedding).num_embeddings
    ids = torch.randint(vocabulary, (3, 9), generator=torch.Generator().manual_seed(0)).to(device)
    mask = (torch.arange(9) < torch.tensor([7, 5, 9])[:, None]).long().to(device)
    other = ids.clone()
    other[0] = (other[0] + 1) % vocabulary

    def scores(ids: Tensor, packed: bool) -> Tensor:
        """Logits (N, V) at the tokens of all rows but the first."""
        layout = pack(ids, mask, config, one=True)
        logits = run(**(layout.inputs if packed else {"input_ids": ids, "attention_mask": mask})).logits
        return (layout.unpacked(logits) if packed else logits)[1:][mask[1:].bool()]

    why = None
    with evaluating(model), no_gradient():
        try:
            alone, beside, moved = scores(ids, False), scores(ids, True), scores(other, True)
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            why = f"its forward fails on packed rows ({str(error).partition(chr(10))[0]})"
        else:
            tolerance = 1e-3 if alone.dtype == torch.float32 else 5e-2
            experts = any("expert" in name and type(size) is int and size > 1 for name, size in vars(config).items())
            if _apart(beside, moved, 0.5 if experts else 1.0) > tolerance:
                why = "the scores of a row depend on the row before it"
            elif _apart(beside, alone, 0.5) > tolerance:
                why = "the scores of a row differ from those of the row alone"
    if why is not None:
        model_class: Any = type(base)
        stateful = {"conv", "linear_attention"} & set(getattr(config, "layer_types", None) or ())
        flash = model_class._supports_flash_attn and not (stateful or model_class._is_stateful)
        flash = flash and not is_flash_attention_requested(config)
        instead = ", or on a GPU try flash_attention_2" if flash else ""
        raise UserError(
            f"packing / padding_free: {base.config.model_type} with attn_implementation {config._attn_implementation} "
            f"cannot run packed rows: {why}; leave both off{instead}."
        )


def _apart(one: Tensor, other: Tensor, quantile: float) -> float:
    """Quantile over positions of the relative difference: 1 is the maximum; not so with experts, as rounding changes
    the expert of a few positions."""
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-9)).quantile(quantile))
