"""Recording the references before training: its time against an epoch of plain SFT, and what rounding to bf16 changes.

    python bench/recording.py [--rounds 5] [--model DIR --texts FILE]

Time: ROWS rows of 128 tokens (half of them response), each with a reference of 64 tokens, which eight languages share
or not. `connection: align` records the layers up to the last that is aligned, `gated` all of them. A random Llama
(shapes.SMALL), fp32, one thread.

Writes bench/results/recording.json.

Rounding, with --model: the references are the lines of FILE, and each is compared with the line before, so the
standardized error is that of unrelated texts, about 2. Prints how far it moves when the references are stored in
bf16: the mean over rows and layers, and the worst layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.connection.align import error
from cctuning.model.recorded import Prompts
from cctuning.model.recorded import record as record_references
from flops import Rows, decoder_forward, plain_step
from measuring import Ratio, alternate, arguments, one_thread, ratio, record, show, write
from shapes import SMALL, llama
from toys import ours, rows, stepper, tokenizer

ROWS, BATCH, TOKENS, ANSWER, REFERENCE, SHARED = 32, 4, 128, 64, 64, 8
GOALS = {1: 0.15, SHARED: 0.03}


def measure(rounds: int, seed: int, folder: Path) -> list[Ratio]:
    """Recording the references of ROWS rows against the steps of plain SFT that read them once."""
    data = rows(ROWS, TOKENS, ANSWER, REFERENCE, SMALL.vocab, seed=seed)
    none = ConnectionConfig(connection="none")
    step = stepper(ours(llama(SMALL, seed), data, tokenizer(SMALL.vocab), folder, BATCH, none))
    cases: dict[str, Any] = {"plain SFT": lambda: [step() for _ in range(ROWS // BATCH)]}
    for kind in ("align", "gated"):
        connected = ConnectedModel.attach(llama(SMALL, seed), ConnectionConfig(connection=kind))
        for shared in GOALS:
            prompts = Prompts(
                torch.randint(2, SMALL.vocab, (ROWS // shared, REFERENCE)).tolist(),
                torch.tensor([[0, REFERENCE]]).expand(ROWS // shared, 2),
            )
            cases[name(kind, shared)] = lambda connected=connected, prompts=prompts: record_references(
                connected, prompts, quiet=True
            )
    times = alternate(cases, rounds, desc="recording")
    return [
        ratio(times, name(kind, shared), "plain SFT", floor(kind, shared), GOALS[shared])
        for kind in ("align", "gated")
        for shared in GOALS
    ]


def name(kind: str, shared: int) -> str:
    return f"{kind}, a reference for {shared} row" + ("s" if shared > 1 else "")


def floor(kind: str, shared: int) -> float:
    """Operations of the forwards over those of plain SFT's steps."""
    layers = SMALL.layers if kind == "gated" else max(ConnectionConfig().layers_of(SMALL.layers)) + 1
    forward = layers / SMALL.layers * decoder_forward(SMALL, ROWS // shared, REFERENCE)
    return forward / plain_step(SMALL, Rows(ROWS, TOKENS, ANSWER, 0, REFERENCE))


def rounding(model: str, texts: list[str]) -> list[dict[str, Any]]:
    """How far the standardized error moves when references are stored in bf16, by the positions that are pooled."""
    made = AutoTokenizer.from_pretrained(model)
    ids = sorted(made(texts)["input_ids"], key=len)
    prompts = Prompts(ids, torch.tensor([[0, len(one)] for one in ids]))
    found = []
    for pool in ("mean", "last"):
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        connected = ConnectedModel.attach(base, ConnectionConfig(align_pool=pool))
        whole, rounded = (
            record_references(connected, prompts, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        which = torch.arange(len(ids)).roll(1)
        sizes, moves = [], []
        for number, layer in enumerate(connected.layers):
            rows = whole.vectors[:, number]
            before, after = (
                error("standardized", rows, one.vectors[:, number], which, one.statistics[layer])
                for one in (whole, rounded)
            )
            sizes.append(float(before.mean()))
            moves.append(float((after - before).abs().mean()))
        found.append(
            {"pool": pool, "error": sum(sizes) / len(sizes), "mean": sum(moves) / len(moves), "worst": max(moves)}
        )
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--model", help="a pre-trained model, to measure the rounding on")
    parser.add_argument("--texts", type=Path, help="its references, one a line")
    given = parser.parse_args()
    one_thread(given.seed)
    shape = {"rows": ROWS, "tokens": TOKENS, "answer": ANSWER, "reference": REFERENCE, "shared": SHARED}
    result = record(given.seed, shape=SMALL, batch=shape)
    if given.model:
        texts = given.texts.read_text(encoding="utf-8").split("\n")
        for one in rounding(given.model, [text for text in texts if text.strip()]):
            print(one, flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        result["cases"] = measure(given.rounds, given.seed, Path(folder))
    show(result["cases"])
    write("recording", result, given.output)


if __name__ == "__main__":
    main()
