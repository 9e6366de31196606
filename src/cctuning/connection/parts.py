"""The parts of the gated connection that users can write themselves: alignments, Decision Makers, Transform Matrices.

Each is a class with a name, which is a value of an option. `size` is d, the width of the activations. The paper's
other form of decision, the choice of a layer, is in model/adaptive.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from cctuning.connection.equations import decide
from cctuning.connection.plan import LayerMemory, Reference
from cctuning.errors import UserError

if TYPE_CHECKING:
    from cctuning.connection.config import ConnectionConfig

PLUGINS = "CC_TUNING_PLUGINS"  # environment variable: modules to import, separated by commas
C = TypeVar("C", bound=type)


class Registry(dict[str, Any]):
    """Name -> class, in the order of registration; None where the name stands for no class at all."""

    def __init__(self, option: str, base: type) -> None:
        super().__init__()
        self.option, self.base = option, base
        self.hint = f" A class of your own must be imported first: name its module in {PLUGINS}."

    def __contains__(self, name: object) -> bool:
        """Whether the name is known; modules of `CC_TUNING_PLUGINS` are imported before one is unknown."""
        for module in () if super().__contains__(name) else os.environ.get(PLUGINS, "").split(","):
            try:
                if module.strip():
                    import_module(module.strip())
            except UserError:
                raise
            except Exception as error:  # whatever its code raises
                said = f"{type(error).__name__}: {error}"
                raise UserError(f"{PLUGINS}={module}: cannot be imported ({said}); is it on PYTHONPATH?") from error
        return super().__contains__(name)

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: `name` becomes a value of the option.

        Raises:
            UserError: the name is taken by another class, or the class does not derive from the option's base class.
        """

        def add(cls: C) -> C:
            taken = self.get(name, cls)
            if f"{taken.__module__}.{taken.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
                raise UserError(f"{self.option}: {name!r} is registered already, by {taken.__module__}; take another.")
            if not issubclass(cls, self.base):
                raise UserError(f"{self.option}: {cls.__name__} must derive from {self.base.__name__}.")
            self[name] = cls
            return cls

        return add


# -- alignments: which activation of the reference a position is offered ---------------------------------------------


class Alignment:
    """Base class: what a layer keeps of the reference pass, and what it offers to a position. Has no weights.

    Register a class of your own with `@register_alignment("name")`. With one vector a reference (`recordable`) only
    `remember` is needed, and the references can be recorded before training.
    """

    recordable = True

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        """What a layer keeps of the FFN outputs (R, S, d) and inputs (R, S, k) of the reference pass: values (R, d)
        and None; where not `recordable`, whatever `offer` reads."""
        raise NotImplementedError

    def offer(self, memory: LayerMemory, which: Tensor, queries: Tensor, reference: Reference | None) -> Tensor:
        """The reference activation (N, d) of each connected position, from what `remember` returned.

        Args:
            which: (N,) reference of each position. queries: (N, k) FFN inputs at the positions.
        """
        return memory[0][which]


ALIGNMENTS = Registry("alignment", Alignment)
register_alignment = ALIGNMENTS.register


@register_alignment("anchor")
class Anchor(Alignment):
    """The last token of the reference."""

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        return output[torch.arange(output.shape[0], device=output.device), reference.last], None


@register_alignment("mean")
class Mean(Alignment):
    """The mean over the tokens of the reference."""

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        weights = reference.mask.to(output.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("rs,rsd->rd", weights, output), None


@register_alignment("attention")
class Attention(Alignment):
    """A mean weighted by the similarity of FFN inputs: `softmax_s(x_t x_s / sqrt(k))` over the tokens s."""

    recordable = False

    def remember(self, output: Tensor, inputs: Tensor, reference: Reference) -> LayerMemory:
        return output, inputs

    def offer(self, memory: LayerMemory, which: Tensor, queries: Tensor, reference: Reference | None) -> Tensor:
        values, keys = memory
        assert keys is not None and reference is not None
        # One product with the tokens of all references, masked to the row's own: (N, R*S), not copies of (N, S, k).
        scores = queries.float() @ keys.flatten(0, 1).float().T / math.sqrt(queries.shape[-1])
        owner = torch.arange(keys.shape[0], device=keys.device).repeat_interleave(keys.shape[1])
        allowed = (owner[None, :] == which[:, None]) & reference.mask.flatten()[None, :]
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=1)
        return weights.to(values.dtype) @ values.flatten(0, 1)


# -- Decision Makers: the share of the reference in each dimension of an activation ----------------------------------


class Decision(nn.Module):
    """Base class. `forward(e, h)` returns the share a in [0, 1], of a shape that broadcasts to (N, d).

    Register a class of your own with `@register_decision("name")`; every parameter of it must get a gradient whatever
    its inputs, as DDP requires. A decision should read the difference e - h only, so that what it learns does not
    depend on the position in the row.
    """

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__()


DECISIONS = Registry("decision", Decision)
register_decision = DECISIONS.register


@register_decision("gate")
class Gate(Decision):
    """`a = sigmoid(D(e - h))`: D is affine, d -> d, or d -> r -> d with `decision_rank`.

    D starts at zero, so at the first step every dimension takes `sigmoid(decision_bias)` of the reference.
    """

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        rank = config.decision_rank
        self.down = nn.Linear(size, rank, bias=False) if rank else None
        self.up = nn.Linear(rank or size, size)
        nn.init.zeros_(self.up.weight)
        nn.init.constant_(self.up.bias, config.decision_bias)

    def forward(self, reference: Tensor, own: Tensor) -> Tensor:
        return decide(own, reference, self._score).to(own.dtype)

    def _score(self, difference: Tensor) -> Tensor:
        difference = difference.to(self.up.weight.dtype)
        return self.up(difference if self.down is None else self.down(difference))


@register_decision("fixed")
class FixedBlend(Decision):
    """`a = decision_value` everywhere: 0.5 is the ablation without a decision, 1 the alignment to the reference."""

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.value = config.decision_value

    def forward(self, reference: Tensor, own: Tensor) -> Tensor:
        return own.new_full((), self.value)


# -- Transform Matrices: the maps that replace the reference at inference --------------------------------------------


class Transform(nn.Module):
    """Base class: W as a residual, `h W = h + delta(h)` with `delta` zero at the start. `forward` returns `delta(h)`,
    of the shape and dtype of `h`.

    The untrained model is then the base model bit for bit (multiplying by a stored identity would not be exact in tf32
    or bf16), and weight decay pulls W towards the identity and not towards zero.

    Register a class of your own with `@register_transform("name")`. Where the map is linear, set `linear = True` and
    define `matrix` so that it can be merged; where it is of low rank, define `factors` so that it can be exported as a
    LoRA.
    """

    linear = False

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__()

    def moved(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`delta(h)`, and `||delta(h)||^2` of each position in fp32, of the shape of `hidden` without d."""
        delta: Tensor = self(hidden)
        return delta, delta.float().square().sum(dim=-1)

    def matrix(self) -> Tensor:
        """M of W = I + M: (d, d), row convention, fp32, detached."""
        raise UserError(
            f"transform: {type(self).__name__} is not linear and cannot be merged; serve it with cctuning generate, "
            "or train with transform: low_rank or dense."
        )

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """A (d, r) and B (r, d) of W = I + A B, fp32, detached; None where there are no such factors."""
        return None


TRANSFORMS = Registry("transform", Transform)
register_transform = TRANSFORMS.register


@register_transform("low_rank")
class LowRankTransform(Transform):
    """`h W = h + (h A) B` with A (d, r) random and B (r, d) zero at the start; r is `transform_rank`.

    Can be merged into the weights and exported as a LoRA (model/lora.py).
    """

    linear = True

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.down = nn.Linear(size, config.transform_rank, bias=False)  # weight is A transposed: (r, d)
        self.up = nn.Linear(config.transform_rank, size, bias=False)  # weight is B transposed: (d, r)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # as in LoRA
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(self.down(_cast(hidden, self.down))).to(hidden.dtype)

    def moved(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class, with `||z B||^2 = z (B B^T) z^T` for z = h A: r numbers a position are read, and kept
        for backward, in place of d (docs/results/performance.md)."""
        z = self.down(_cast(hidden, self.down))
        rows = self.up(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device))  # B, by a call, as ZeRO-3 needs it
        with torch.autocast(z.device.type, enabled=False):  # a norm of rounded products would be noise
            narrow, rows = z.float(), rows.float()
            norm = ((narrow @ (rows @ rows.T)) * narrow).sum(dim=-1)
        return self.up(z).to(hidden.dtype), norm

    def matrix(self) -> Tensor:
        a, b = self.factors()
        return a @ b

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.down.weight.detach().float().T, self.up.weight.detach().float().T


@register_transform("dense")
class DenseTransform(Transform):
    """`h W = h + h M` with M (d, d) zero at the start. Can be merged; a LoRA of it would have full rank."""

    linear = True

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.map = nn.Linear(size, size, bias=False)  # weight is M transposed
        nn.init.zeros_(self.map.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.map(_cast(hidden, self.map)).to(hidden.dtype)

    def matrix(self) -> Tensor:
        return self.map.weight.detach().float().T


@register_transform("nonlinear")
class NonlinearTransform(Transform):
    """`h -> h + silu(h A + c) B` with B zero at the start: a small residual block. Cannot be merged."""

    def __init__(self, config: ConnectionConfig, size: int) -> None:
        super().__init__(config, size)
        self.down = nn.Linear(size, config.transform_rank)
        self.up = nn.Linear(config.transform_rank, size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(nn.functional.silu(self.down(_cast(hidden, self.down)))).to(hidden.dtype)


TRANSFORMS["none"] = None


def build_transform(config: ConnectionConfig, size: int) -> Transform | None:
    """The transform of `config` for activations of width `size`; None for `transform: none`."""
    cls = TRANSFORMS[config.transform]
    return None if cls is None else cls(config, size)


def _cast(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """`hidden` in the dtype of `layer`; under autocast it stays as it is, for the layer casts it itself."""
    return hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(layer.weight.dtype)
