"""Turn lm-eval's samples into the lines of `samples/TASK.jsonl`, and count empty and distinct answers."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sample_line(sample: dict[str, Any]) -> dict[str, Any]:
    """One item as a line of `samples/TASK.jsonl`."""
    arguments = list(sample["arguments"].values()) if isinstance(sample["arguments"], dict) else sample["arguments"]
    texts = [list(one.values()) if isinstance(one, dict) else list(one) for one in arguments]
    likelihoods = len(texts) > 1 or not isinstance(texts[0][1], dict)
    response: Any
    if likelihoods:
        found = [one[0] if isinstance(one, (list, tuple)) else one for one in sample["filtered_resps"]]
        response = [{"choice": text[1], "loglikelihood": float(one)} for text, one in zip(texts, found, strict=True)]
    else:  # a filter may extract a number or strip white space
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


def answer_counts(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of empty answers, distinct answers and distinct targets; empty for a task without generated answers."""
    written = [one for one in samples if isinstance(one["response"], dict)]
    if not written:
        return {}
    answers = [str(one["response"]["said"]).strip() for one in written]
    targets = {json.dumps(one["target"], ensure_ascii=False) for one in written}
    return {"answers": {"empty": answers.count(""), "distinct": len({*answers}), "targets": len(targets)}}


def uniform_answers(name: str, task: dict[str, Any]) -> list[str]:
    """A warning if all answers of a task are empty or the same, which points to wrong prompts or settings."""
    found = task.get("answers")
    if not found or found["distinct"] > 1 or (not found["empty"] and found["targets"] < 2):
        return []
    what = "empty" if found["empty"] else "the same"
    return [
        f"{name}: all {task['items']} answers are {what}, so the score does not measure the model: read "
        f"samples/{name}.jsonl and check that prompts are rendered as in training (--chat)."
    ]
