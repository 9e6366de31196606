"""Write the model card of an export from the template model_card.md.

Everything is read from the run's records and from configs; what they do not contain is said to be unknown. Paths of
the training machine are shortened to their last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from cctuning.languages import language_name
from cctuning.markdown import table
from cctuning.serving.engines import TEMPLATES, Manifest
from cctuning.serving.trained_run import TrainedRun
from cctuning.training.card import CITE, describe_method, hub_name, option_table

# Options of a run that name places of the training machine.
# fmt: off
PLACES = (
    "output_dir", "model", "tokenizer", "data", "eval_data", "logging_dir", "run_name", "report_to", "push_to_hub",
)
# fmt: on
TUNED = {"full": "all weights of the base", "lora": "a LoRA on the base", "connection": "the connection alone"}


def _language(code: str) -> str:
    known = language_name(code)
    return f"{known} (`{code}`)" if known != code else f"`{code}`"


def _counts(languages: dict[str, int]) -> str:
    return ", ".join(f"{_language(code)} {count}" for code, count in sorted(languages.items()))


TEMPLATES.filters |= {"language": _language, "counts": _counts}


def model_card(run: TrainedRun, manifest: Manifest, *, name: str, base: str | None, notes: Sequence[str]) -> str:
    """The card as Markdown.

    Args:
        name: that the model is loaded by.
        base: name or path of the base model, where it is known.
        notes: further sentences for whoever serves the model.
    """
    licence, base, lora = base_licence(base), hub_name(base), manifest.kind == "lora"
    languages = [*manifest.languages]
    if run.record and manifest.reference_language in run.record["data"]["languages"]:
        languages.append(manifest.reference_language)
    metadata = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if lora else "finetune") if base else None,
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-generation",
        language=[code for code in languages if code not in ("und", "")] or None,
        tags=["cc-tuning", "multilingual", *(["lora"] if lora else [])],
        **licence,
    )
    values: dict[str, Any] = {
        "metadata": metadata.to_yaml(),
        "name": name,
        "base": base,
        "manifest": manifest,
        "lora": lora,
        "notes": notes,
        "connected": run.connection.connection != "none",
        "method": describe_method(run.connection, run.reference_language),
        "options": option_table(run.connection),
        "record": run.record and {"parallel": None, **run.record},
        "licence": licence,
        "cite": CITE,
    }
    if run.record:
        versions = run.record["versions"].items()
        values |= {
            "tuned": TUNED.get(str(run.options.get("tune", "full")), ""),
            "settings": _settings(run.options),
            "versions": ", ".join(f"{key} {value}" for key, value in versions if key != "platform"),
            "sources": _sources(run.record),
        }
    return TEMPLATES.get_template("model_card.md").render(values)


def _settings(options: dict[str, Any]) -> str:
    """The options of a run as YAML, without places and the hub's token."""
    kept = {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in options.items()
        if key not in PLACES and not key.startswith("hub_")
    }
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _sources(record: dict[str, Any]) -> str:
    """The table of the sources of rows and parallel text."""
    rows = []
    for source in [*record["data"]["sources"], *(record.get("parallel") or {"sources": []})["sources"]]:
        path, hashes = str(source.get("path", "?")), dict(source.get("fingerprints") or {})
        counts = ", ".join(f"{code} {count}" for code, count in sorted((source.get("languages") or {}).items()))
        files = "; ".join(f"{Path(file).name} `{value}`" for file, value in hashes.items())
        name = Path(path).name if Path(path).is_absolute() or Path(path).exists() else path  # a hub name stays
        rows.append([name, source.get("rows", source.get("pairs", "?")), counts, files])
    return table(["source", "rows", "languages", "files"], rows, "lr")


def base_licence(base: str | None) -> dict[str, Any]:
    """Licence of the base model as in the metadata of its card (local README.md, or the hub); empty if unknown."""
    if not base:
        return {}
    try:
        found = ModelCard.load(Path(base) / "README.md" if Path(base).is_dir() else base).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(found.get("license"), str):
        return {}
    return {key: found[key] for key in ("license", "license_name", "license_link") if found.get(key)}
