"""Answering with the connection against the base model: time to the first token, and 32 tokens, at batch 1 and 8.

    python bench/inference.py [--rounds 7] [--prompt 64] [--tokens 32]

A random Llama (toys.SMALL), fp32, greedy, one thread, left-padded prompts of 64 tokens. Every case runs in every
round, the base model's own `generate` among them. `folded` is what `merge_and_unload` returns; `live` has the
English parallel at inference (a reference pass, its ratio for the record).

Writes bench/results/inference.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cctuning import ConnectedModel, ConnectionConfig
from measuring import alternate, arguments, one_thread, ratio, record, show, write
from shapes import SMALL, llama

TARGETS = {"folded": 1.0, "adaptive": 1.9, "prompt_end": 1.05}


def models(seed: int) -> dict[str, Any]:
    """The base and its connected forms, all with connections that do something."""

    def connected(**options: Any) -> Any:
        made = ConnectedModel.attach(llama(SMALL, seed).eval(), ConnectionConfig(**{"connection": "gated", **options}))
        for part in made.connections.values():
            for parameter in part.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.01)
        return made.eval()

    adaptive = connected(connection="adaptive")
    adaptive.adaptive.set_matrix(torch.eye(SMALL.width))
    return {
        "base": llama(SMALL, seed).eval(),
        "folded": connected().merge_and_unload(),
        "all, not folded": connected(),
        "prompt_end": connected(scope="prompt_end"),
        "adaptive": adaptive,
        "live": connected(),
    }


def runs(made: dict[str, Any], batch: int, prompt: int, tokens: int, seed: int) -> dict[str, Callable[[], Any]]:
    """`generate` of each model on the same prompts."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 5000, (batch, prompt), generator=draw)
    mask = torch.ones_like(ids)
    mask[1:, :8] = 0
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def run(name: str) -> Callable[[], Any]:
        extra = {"reference_input_ids": ids, "reference_attention_mask": mask} if name == "live" else {}
        return lambda: made[name].generate(input_ids=ids, attention_mask=mask, **options, **extra)

    return {name: run(name) for name in made}


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    one_thread(options.seed)
    result = record(options.seed, shape=SMALL, prompt=options.prompt, tokens=options.tokens, cases=[])
    made = models(options.seed)
    for batch in (1, 8):
        for tokens in (1, options.tokens):
            what = f"batch {batch}, {'first token' if tokens == 1 else f'{tokens} tokens'}"
            times = alternate(runs(made, batch, options.prompt, tokens, options.seed), options.rounds, desc=what)
            found = [ratio(times, name, "base", target=TARGETS.get(name)) for name in made if name != "base"]
            for one in found:
                one.name = f"{one.name}, {what}"
            show(found)
            result["cases"] += found
            write("inference", result, options.output)


if __name__ == "__main__":
    main()
