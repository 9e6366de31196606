"""Split cut checkpoints into small files and join them again, for a machine without a network.

    python -m experiments.real.gpu.carry pack gemma-3-270m DIR --worlds sib200 bmlama --accept gemma-3-270m   # here
    python -m experiments.real.gpu.carry unpack DIR CHECKPOINTS                                                # there

The weights are carried as the GGUF has them, quantised: the layers once, and of the embedding the rows that any of the
worlds needs. `unpack` writes CHECKPOINTS/BASE/WORLD with the same tensors, bit for bit (their hash is checked). Pieces
are under `--piece` MiB each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from cctuning.errors import UserError
from experiments.real.bases import BASES, Base, fetched, fingerprint, ready, written_out
from experiments.real.registry import world_of

BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
EMBEDDING = "model.embed_tokens.weight"
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
NORMS = {
    "gemma3_text": {
        "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    },
    "llama": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
}  # fmt: skip


def pack(base: Base, worlds: Sequence[str], target: Path, piece: int, accept: Sequence[str]) -> None:
    """Write the base, cut to each of the worlds, into `target`; `piece`: bytes of a piece."""
    target.mkdir(parents=True, exist_ok=True)
    cut = {world: ready(base, world_of(world).texts(), accept) for world in worlds}
    whole, source = written_out(base, accept), fetched(base, accept)
    kept = {world: _kept(folder, whole) for world, folder in cut.items()}
    carried = sorted(set().union(*kept.values()))
    place = {token: number for number, token in enumerate(carried)}
    config = json.loads((whole / "config.json").read_text())
    table: list[dict[str, Any]] = []
    body = bytearray()
    for tensor in gguf.GGUFReader(source).tensors:
        raw = np.asarray(tensor.data)
        name, change = _renamed(tensor.name, config)
        shape = [int(size) for size in reversed(tensor.shape)]
        if name == EMBEDDING:
            raw, shape = raw[carried], [len(carried), shape[1]]
        content = np.ascontiguousarray(raw).tobytes()
        table.append({"name": name, "type": int(tensor.tensor_type), "shape": shape, "change": change,
                      "bytes": len(content)})  # fmt: skip
        body += content
    told: dict[str, Any] = {"tensors": table, "worlds": {}}
    for world, folder in cut.items():
        told["worlds"][world] = {
            "rows": [place[token] for token in kept[world]],
            "hash": _hash(load_file(folder / "model.safetensors")),
            "fingerprint": fingerprint(folder),
        }
        with tarfile.open(target / f"{base.name}.{world}.tar.gz", "w:gz") as archive:
            for name in BESIDE:
                if (folder / name).is_file():
                    archive.add(folder / name, name)
    (target / f"{base.name}.tensors.json").write_text(json.dumps(told))
    for number, start in enumerate(range(0, len(body), piece)):
        (target / f"{base.name}.body.{number:02d}").write_bytes(body[start : start + piece])


def _kept(checkpoint: Path, whole: Path) -> list[int]:
    """Return the ids in the whole vocabulary of the cut vocabulary's tokens, in its order."""
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    old = Tokenizer.from_file(str(whole / "tokenizer.json")).get_vocab()
    new = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab()
    return [old[token] for token, _ in sorted(new.items(), key=lambda one: one[1])][:size]


def _renamed(name: str, config: dict[str, Any]) -> tuple[str, str]:
    """transformers' name of a GGUF tensor, and how its values differ: as transformers' own reader has it."""
    kind = config["model_type"]
    norm = "minus_one" if kind == "gemma3_text" else "none"  # llama.cpp keeps 1 + w where Gemma's checkpoint keeps w
    if name == "token_embd.weight":
        return EMBEDDING, "none"
    if name == "output_norm.weight":
        return "model.norm.weight", norm
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not found:
        raise UserError(f"{name}: a tensor that this script does not know; expected one of Llama's or Gemma's.")
    layer, part = found.groups()
    if part in NORMS[kind]:
        return f"model.layers.{layer}.{NORMS[kind][part]}.weight", norm
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    change = f"unpermute {heads[part]}" if kind == "llama" and part in heads else "none"
    return f"model.layers.{layer}.{NAMES[part]}.weight", norm if part.endswith("_norm") else change


def unpack(source: Path, target: Path) -> None:
    """Write the checkpoints of all bases that `pack` wrote into `source`, each as BASE/WORLD.

    Raises:
        UserError: the weights are not those that `pack` read.
    """
    for file in sorted(source.glob("*.tensors.json")):
        base = file.name.removesuffix(".tensors.json")
        told = json.loads(file.read_text())
        weights = _weights(
            told["tensors"], b"".join(one.read_bytes() for one in sorted(source.glob(f"{base}.body.*")))
        )
        every = weights[EMBEDDING]
        for world, of in told["worlds"].items():
            weights[EMBEDDING] = every[torch.tensor(of["rows"])].clone()
            if _hash(weights) != of["hash"]:
                raise UserError(f"{file}: the weights differ from those that were packed; copy the pieces again.")
            folder = target / base / world
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            with tarfile.open(source / f"{base}.{world}.tar.gz") as archive:
                archive.extractall(folder, filter="data")
            (folder / "fingerprint.json").write_text(json.dumps({"fingerprint": of["fingerprint"]}))


def _weights(table: Sequence[dict[str, Any]], body: bytes) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    place = 0
    for one in table:
        raw = np.frombuffer(body, np.uint8, one["bytes"], place)
        place += one["bytes"]
        kind = gguf.GGMLQuantizationType(one["type"])
        if kind == gguf.GGMLQuantizationType.F32:
            values = raw.view(np.float32).reshape(one["shape"])
        else:
            values = dequantize(raw.reshape(one["shape"][0], -1), kind).reshape(one["shape"])
        weights[one["name"]] = torch.from_numpy(_changed(values, one["change"]).astype(np.float32))
    return weights


def _changed(values: np.ndarray, change: str) -> np.ndarray:
    if change == "minus_one":
        return values - 1
    if change.startswith("unpermute"):
        heads = int(change.split()[1])
        half = values.shape[0] // heads // 2
        return np.ascontiguousarray(values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape))
    return values


def _hash(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name != "lm_head.weight":  # tied
            digest.update(name.encode())
            digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack")
    one.add_argument("base", choices=list(BASES))
    one.add_argument("folder", type=Path)
    one.add_argument("--worlds", nargs="+", required=True)
    one.add_argument("--accept", nargs="*", default=[])
    one.add_argument("--piece", type=float, default=28, help="MiB of a piece at most")
    two = commands.add_parser("unpack")
    two.add_argument("folder", type=Path)
    two.add_argument("checkpoints", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    given = _arguments(argv)
    if given.command == "unpack":
        unpack(given.folder, given.checkpoints)
        return
    pack(BASES[given.base], given.worlds, given.folder, int(given.piece * 2**20), given.accept)
    print(*_sizes(given.folder), sep="\n")


def _sizes(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        yield f"{path.stat().st_size / 2**20:8.1f} MiB  {path.name}"


if __name__ == "__main__":
    main()
