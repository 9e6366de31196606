"""Runs to export: tiny, trained by the command line, with a connection far enough from the identity to be missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cctuning.model.loading import load
from tests.cli.world import done, records, write_jsonl, write_model, write_recipe
from tests.conftest import shake
from tests.training.toys import tokenizer


def make(folder: Path, chat: bool = False, base: dict[str, Any] | None = None, **options: Any) -> Path:
    """A base, rows, and a run on them with a connection that is far from the identity.

    Args:
        base: options of the base's config.
        options: of the run.
    """
    model = write_model(folder / "base", chat=chat, **(base or {}))
    data = write_jsonl(folder / "rows.jsonl", records())
    recipe = write_recipe(folder / "recipe.yaml", model=str(model), data=str(data), lora_rank=4, **options)
    run = folder / "run"
    done("train", "--config", recipe, "--output_dir", run)
    loaded = load(str(run))
    if loaded.connected is not None:
        shake(loaded.connected, 1.0)
        loaded.connected.save_pretrained(run / "model", base_trained=loaded.connected.base_trained)
    return run


def make_turns(folder: Path, **options: Any) -> Path:
    """A run on a base whose template ends a turn with <turn>, not its eos; trained to answer with one word."""
    base = write_model(folder / "base", chat=True)
    made = tokenizer(chat=True)
    made.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    made.chat_template = made.chat_template.replace("<end>", " <turn>")
    made.save_pretrained(base)
    lines = [{"prompt": f"x{i}", "prompt_en": f"w{i}", "response": "x7", "lang": "qaa"} for i in range(12)]
    data = write_jsonl(folder / "rows.jsonl", lines)
    recipe = write_recipe(
        folder / "r.yaml", model=str(base), data=str(data), max_steps=40, learning_rate=2e-2, **options
    )
    done("train", "--config", recipe, "--output_dir", folder / "run")
    return folder / "run"


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    record = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in record.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
