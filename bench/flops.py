"""What a training step has to cost: floating-point operations of a dense decoder, by formula.

A product of (n, k) with (k, m) is 2 n k m operations. A layer's products are the attention's four and the FFN's
three (gated) projections; attention itself is two products over T positions, counted in full and not halved for
causality, because the kernels in use on a CPU compute it so. A backward is two forwards where the weights train, one
where only their inputs' gradients are wanted (frozen weights under a LoRA); checkpointing adds a forward. The kind
that is not reentrant stops recomputing a layer at the last value that backward wants: plain SFT does not want what
the FFN's last projection gives and is spared that product, while the connection's gradient does want it. Norms,
activations, softmax, the optimiser and the connection's own elementwise work are not counted: a floor is what no
implementation can go below, and everything a program does beyond it is overhead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shapes import Shape


def decoder_forward(shape: Shape, rows: int, tokens: int) -> float:
    """One forward of the layers over `rows` of `tokens`, without the head."""
    attention = 4 * rows * tokens**2 * shape.width
    return shape.layers * (2.0 * rows * tokens * shape.layer_weights + attention)


def head(shape: Shape, positions: int, products: int = 3) -> float:
    """The LM head over `positions`: a forward and two backward products, or four where the forward is recomputed."""
    return products * 2.0 * positions * shape.width * shape.vocab


def connection(shape: Shape, passes: int, tokens: int, connected: int, rank: int) -> float:
    """Products of the gated connection, forward and backward: the low-rank transform at all positions and the gate
    (d x d) at `connected` positions of each layer."""
    transform = 2.0 * passes * tokens * 2 * shape.width * rank
    gate = 2.0 * connected * shape.width**2
    return 3 * shape.layers * (transform + gate)


@dataclass(frozen=True)
class Rows:
    """A batch: `rows` of `tokens`, `answer` of them response; `references` distinct ones of `reference` tokens."""

    rows: int
    tokens: int
    answer: int
    references: int
    reference: int


def layers_step(shape: Shape, rows: int, tokens: int, checkpointing: str | None, frozen: bool, plain: bool) -> float:
    """A step of the layers, without the head.

    Args:
        checkpointing: None, `reentrant` or `not reentrant`.
        frozen: the base's weights take no gradient (LoRA); its own small products are not counted.
        plain: without the connection.
    """
    forwards = 3 - frozen + (checkpointing is not None)
    spared = checkpointing == "not reentrant" and plain
    last_projection = 2.0 * shape.layers * rows * tokens * shape.width * shape.ffn
    return forwards * decoder_forward(shape, rows, tokens) - spared * last_projection


def plain_step(shape: Shape, batch: Rows, *, checkpointing: str | None = None, frozen: bool = False) -> float:
    """Plain SFT with logits at response tokens only."""
    layers = layers_step(shape, batch.rows, batch.tokens, checkpointing, frozen, plain=True)
    return layers + head(shape, batch.rows * batch.answer, 3 - frozen)


def trl_step(
    shape: Shape, batch: Rows, *, compact: bool, checkpointing: str | None = None, frozen: bool = False
) -> float:
    """TRL's SFT step: its fused head recomputes the logits in backward (four products, three where frozen), at
    response tokens only with Triton (`compact`), at all positions but each row's last elsewhere."""
    positions = batch.rows * (batch.answer if compact else batch.tokens - 1)
    layers = layers_step(shape, batch.rows, batch.tokens, checkpointing, frozen, plain=True)
    return layers + head(shape, positions, 4 - frozen)


def connected_step(
    shape: Shape,
    batch: Rows,
    *,
    both: bool = False,
    checkpointing: str | None = None,
    frozen: bool = False,
    rank: int = 16,
) -> float:
    """A gated step: each row once (`sampled`, `student`) or twice (`both`), and each reference forward once."""
    rows = batch.rows * (2 if both else 1)
    layers = layers_step(shape, rows, batch.tokens, checkpointing, frozen, plain=False)
    scored = head(shape, rows * batch.answer, 3 - frozen)
    reference = decoder_forward(shape, batch.references, batch.reference)
    return layers + scored + reference + connection(shape, rows, batch.tokens, rows, rank)


SHAPES = {
    "small": Shape(8, 512, 1408, 8, 4, 8192),
    "1B": Shape(16, 2048, 8192, 32, 8, 128256),
    "8B": Shape(32, 4096, 14336, 32, 8, 128256),
    "70B": Shape(80, 8192, 28672, 64, 8, 128256),
}


def parts(shape: Shape, batch: Rows, rank: int = 16) -> dict[str, float]:
    """What a `sampled` step is made of, each part over plain SFT's step."""
    plain = plain_step(shape, batch)
    return {
        "layers": 3 * decoder_forward(shape, batch.rows, batch.tokens) / plain,
        "head": head(shape, batch.rows * batch.answer) / plain,
        "reference": decoder_forward(shape, batch.references, batch.reference) / plain,
        "transform": connection(shape, batch.rows, batch.tokens, 0, rank) / plain,
        "gate": connection(shape, 0, batch.tokens, batch.rows, rank) / plain,
        "sampled": connected_step(shape, batch, rank=rank) / plain,
        "8 languages": connected_step(shape, replace(batch, references=batch.rows // 8), rank=rank) / plain,
        "both": connected_step(shape, batch, both=True, rank=rank) / plain,
        "sampled, LoRA": connected_step(shape, batch, frozen=True, rank=rank) / plain_step(shape, batch, frozen=True),
    }


def main() -> None:
    """Print the floors of 128-token rows, half response, with 64-token references: `python bench/flops.py`."""
    batch = Rows(rows=8, tokens=128, answer=64, references=8, reference=64)
    found = {name: parts(shape, batch) for name, shape in SHAPES.items()}
    names = list(found["small"])
    print("| shape | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|")
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{values[part]:.4f}" for part in names) + " |")


if __name__ == "__main__":
    main()
