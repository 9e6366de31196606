"""Options of the connection: one dataclass for the Python API, the command line and recipes.

`connection: align` reads only `align_*` and `layers`. The defaults of `connection: gated` were
chosen on development splits of made-up worlds (docs/method/defaults.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cctuning.connection.parts import ALIGNMENTS, DECISIONS, TRANSFORMS
from cctuning.errors import UserError, nearest
from cctuning.settings import check_values, option

SCOPES = ("prompt_end", "response", "all")  # each contains the ones before it
WEIGHTS = {"contrastive": 1.0, "standardized": 1.0, "relative": 5.0}  # of the alignment, where none is given
RETIRED = {"reference_gradient"}  # in saved connections, where it changes nothing


@dataclass
class ConnectionConfig:
    """How the activations of a row and of its reference (the parallel of its prompt) are connected.

    Each field's help is its documentation. A value that is out of range, or a combination that cannot be trained, is
    a `UserError` on construction.
    """

    RANGES = {
        **dict.fromkeys(("decision_value", "fused_probability_start", "fused_probability_end"), (0, 1)),
        **dict.fromkeys(("align_weight", "identity_weight", "distill_weight"), (0, math.inf)),
        **dict.fromkeys(("transform_rank", "decision_rank", "align_negatives"), (1, math.inf)),
        "align_temperature": (1e-6, math.inf),
    }

    connection: str = option(
        "align",
        "align: hidden states of a prompt are aligned to those of its reference; nothing is added to the model. "
        "gated: the paper's connection, a gate and a transform in every layer. adaptive: the connection of the "
        "authors' code. none: plain SFT.",
        choices=("align", "gated", "adaptive", "none"),
    )
    align_loss: str | None = option(
        None,
        "Error between a row and its reference. contrastive: InfoNCE, the row's own reference against others. "
        "standardized: squared error by dimension, in units of the references' spread; 1 is no better than the mean "
        "reference. relative: squared error over the squared norm. Unset: contrastive for align, relative for gated.",
        choices=("contrastive", "standardized", "relative"),
    )
    align_at: str = option(
        "residual",
        "align: what is aligned, the decoder layer's output (residual) or its FFN's output (ffn).",
        choices=("residual", "ffn"),
    )
    align_pool: str = option(
        "mean",
        "align: the positions compared on both sides. mean: over the prompt's own text, without the first token and "
        "the template's. text_last: its last token. last: the prompt's last token, which may be the template's.",
        choices=("mean", "text_last", "last"),
    )
    align_turns: str = option(
        "all",
        "align: the turns of a conversation that are compared. all: every turn but system messages. last: what "
        "follows the last assistant turn. (gated and adaptive connect at the end of the last prompt.)",
        choices=("all", "last"),
    )
    align_temperature: float = option(0.1, "contrastive: temperature of the softmax over cosines.")
    align_negatives: int = option(
        1024, "contrastive: at most this many recorded references, besides the batch's own, to compare a row with."
    )
    alignment: str = option(
        "anchor",
        "Which reference activation a position is offered: the reference's last token (anchor), the mean over it, or "
        "a mean weighted by the similarity of the FFN inputs (attention).",
        choices=ALIGNMENTS,
    )
    scope: str = option(
        "all",
        "Where the transform acts, in training and at inference: the prompt's last token, every position that "
        "predicts a response token, or all positions. Only `all` can be merged into the weights.",
        choices=SCOPES,
    )
    fusion_scope: str | None = option(
        None,
        "Where the activation is fused with the reference's; elsewhere the transform learns the identity. Unset: "
        "prompt_end when scope is all, else the same as scope.",
        choices=SCOPES,
    )
    decision: str = option(
        "gate",
        "Decision Maker: a trained share per dimension (gate), or the same share everywhere (fixed).",
        choices=DECISIONS,
    )
    decision_rank: int | None = option(None, "Rank of the gate's map d -> r -> d; unset: a full d x d map per layer.")
    decision_bias: float = option(-2.0, "Bias of the gate at the start: sigmoid of it is the reference's first share.")
    decision_value: float = option(0.5, "The reference's share in every dimension where decision is fixed.")
    transform: str = option(
        "low_rank",
        "Transform Matrix: low_rank (can be merged, or exported as a LoRA), dense (can be merged), nonlinear "
        "(cannot), none.",
        choices=TRANSFORMS,
    )
    transform_rank: int = option(16, "Rank of the low_rank transform, and width of the nonlinear one.")
    layers: list[int] | None = option(
        None,
        "Numbers of the layers that connect, from 0. Unset: all for gated; for align, a sixth to half of the depth.",
    )
    paths: str = option(
        "sampled",
        "Passes in the loss: sampled (one pass a row, fused or student, drawn), both, student (aligned, never fused), "
        "or fused (as the paper describes it; an ablation, for it learns to need the reference).",
        choices=("sampled", "both", "fused", "student"),
    )
    fused_probability_start: float = option(1.0, "sampled: probability of the fused pass at the first step.")
    fused_probability_end: float = option(0.0, "sampled: probability of the fused pass at the last step (linear).")
    align_weight: float | None = option(
        None, "Weight of the alignment error. Unset: 1 for contrastive and standardized, 5 for relative."
    )
    identity_weight: float = option(
        1.0, "Weight, within align_weight, of the error where the target is the row's own activation."
    )
    distill_weight: float = option(
        0.0, "both: weight of KL(fused pass || student pass) over response tokens, and at the end of answer-free rows."
    )
    reference_weights: str | None = option(
        None,
        "Weights that references run through: those before training (start: they are recorded, the targets are "
        "constant, and rows in the reference language are kept where they were) or the current ones (current, as in "
        "the paper). Unset: start, but current where references cannot be recorded.",
        choices=("current", "start"),
    )

    def __post_init__(self) -> None:
        check_values(type(self), vars(self), "")
        if self.connection == "gated" and self.align_loss == "contrastive":
            raise UserError(
                "align_loss: contrastive needs connection: align; the gated connection takes standardized or relative."
            )
        if self.connection == "gated" and self.alignment == "attention" and self.loss == "standardized":
            raise UserError(
                "align_loss: standardized needs the spread of recorded references, and alignment: attention records "
                "none; use relative, or alignment: anchor."
            )
        if self.layers is not None and not 0 < len(set(self.layers)) == len(self.layers):
            raise UserError(f"layers: expected distinct layer numbers, or unset for all; got {self.layers}.")
        if SCOPES.index(self.where_fused) > SCOPES.index(self.scope):
            raise UserError(
                f"fusion_scope: {self.fusion_scope} reaches beyond scope: {self.scope}; the transform could not "
                "imitate the connection there. Widen scope, or narrow fusion_scope."
            )
        if self.distill_weight > 0 and self.paths != "both":
            raise UserError(f"distill_weight needs paths: both (a teacher and a student pass); paths is {self.paths}.")
        if self.connection == "adaptive" and (self.paths == "both" or self.layers is not None):
            raise UserError(
                "connection: adaptive trains on the fused pass of all layers; leave paths and layers unset."
            )
        if self.reference_weights == "start" and self.connection == "adaptive":
            raise UserError("reference_weights: start is not supported with connection: adaptive; leave it unset.")

    @property
    def recordable(self) -> bool:
        """Whether what the layers are offered can be recorded: one vector a reference."""
        return self.connection == "align" or (self.connection == "gated" and ALIGNMENTS[self.alignment].recordable)

    def settled(self, records: bool) -> ConnectionConfig:
        """A copy with `reference_weights` resolved; `records`: the run can record its references."""
        if self.reference_weights is not None:
            return self
        return replace(self, reference_weights="start" if records and self.recordable else "current")

    @property
    def loss(self) -> str:
        """`align_loss` with its default resolved."""
        return self.align_loss or ("contrastive" if self.connection == "align" else "relative")

    @property
    def weight(self) -> float:
        """`align_weight` with its default resolved."""
        return WEIGHTS[self.loss] if self.align_weight is None else self.align_weight

    def layers_of(self, depth: int) -> list[int]:
        """`layers` with its default resolved, in a model of `depth` layers."""
        if self.layers is not None:
            return list(self.layers)
        if self.connection == "align":  # where languages are closest (docs/lab/real.md)
            return list(range(depth // 6, depth // 2 + 1)) if depth > 1 else [0]
        return list(range(depth))

    @property
    def where_fused(self) -> str:
        """`fusion_scope` with its default resolved."""
        if self.fusion_scope is not None:
            return self.fusion_scope
        return "prompt_end" if self.scope == "all" else self.scope

    @property
    def plain(self) -> bool:
        """Whether the trained model is a plain checkpoint or LoRA, with no part beside its own weights."""
        return self.connection in ("align", "none")

    @property
    def mergeable(self) -> bool:
        """Whether inference can run as a plain checkpoint: the transform is linear and acts at every position."""
        if self.plain or (self.connection == "gated" and self.transform == "none"):
            return True
        return self.connection == "gated" and self.scope == "all" and TRANSFORMS[self.transform].linear

    def to_dict(self) -> dict[str, Any]:
        """All options as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], where: str = "connection config") -> ConnectionConfig:
        """Build from a mapping; an unknown key is a `UserError` that names `where` and suggests the nearest."""
        known = [option.name for option in fields(cls)]
        for key in options.keys() - RETIRED:
            if key not in known:
                raise UserError(f"{where}: unknown option {key!r}.{nearest(key, known)}")
        return cls(**{key: value for key, value in options.items() if key not in RETIRED})


ALIGN_OPTIONS = (*(option.name for option in fields(ConnectionConfig) if option.name.startswith("align_")), "layers")
