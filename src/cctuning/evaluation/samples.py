"""What is kept of each item that was asked, and what the answers of a task say together."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sample_line(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one item, for a person to read and for `compare` to pair."""
    arguments = list(sample["arguments"].values()) if isinstance(sample["arguments"], dict) else sample["arguments"]
    texts = [list(one.values()) if isinstance(one, dict) else list(one) for one in arguments]
    likelihoods = len(texts) > 1 or not isinstance(texts[0][1], dict)
    response: Any
    if likelihoods:
        found = [one[0] if isinstance(one, (list, tuple)) else one for one in sample["filtered_resps"]]
        response = [{"choice": text[1], "loglikelihood": float(one)} for text, one in zip(texts, found, strict=True)]
    else:  # a filter may keep a number out of a sentence, or white space off it
        response = {"said": sample["resps"][0][0], "scored": sample["filtered_resps"][0]}
    metrics = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample.get(name), (int, float))}
    return {
        "id": sample["doc_id"],
        "hash": sample["doc_hash"],
        "prompt": texts[0][0],
        "prompt_hash": hashlib.sha256(json.dumps(texts, ensure_ascii=False, default=str).encode()).hexdigest(),
        "target": sample["target"],
        "response": response,
        "metrics": metrics,
    }


def answers_of(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Of answers that were written: how many are empty, how many differ, and how many different ones were wanted."""
    written = [one for one in samples if isinstance(one["response"], dict)]
    if not written:
        return {}
    said = [str(one["response"]["said"]).strip() for one in written]
    targets = {json.dumps(one["target"], ensure_ascii=False) for one in written}
    return {"answers": {"empty": said.count(""), "distinct": len({*said}), "targets": len(targets)}}


def said_alike(name: str, task: dict[str, Any]) -> list[str]:
    """A warning where all answers are empty, or one and the same: such a score is no measure of the model."""
    found = task.get("answers")
    if not found or found["distinct"] > 1 or (not found["empty"] and found["targets"] < 2):
        return []
    what = "empty" if found["empty"] else "the same"
    return [
        f"{name}: all {task['items']} answers are {what}, which says more of how the model was asked than of what it "
        f"can do: read samples/{name}.jsonl, and see that prompts are rendered as in training (--chat)."
    ]
