"""The README.md of an export: how to use it, how and on what it was trained, what was measured, whose licence holds.

Everything in it is read from a record or a config; what is not known is said to be not known. Paths of the machine it
was trained on are left out or cut to their last part: they mean nothing to a reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from cctuning.languages import language_name
from cctuning.markdown import table
from cctuning.serving.licences import Licence, base_licence, row_licences
from cctuning.serving.manifest import Manifest
from cctuning.serving.origin import Origin
from cctuning.training.card import CITE, describe_method, hub_name, option_table

# Options of a run that say where, not how.
PLACES = (
    "output_dir",
    "model",
    "tokenizer",
    "data",
    "eval_data",
    "logging_dir",
    "run_name",
    "report_to",
    "push_to_hub",
)


def model_card(
    origin: Origin, manifest: Manifest, *, name: str, base: str | None, results: str, notes: list[str]
) -> str:
    """The card as Markdown.

    Args:
        name: what a reader loads it by: a hub name, or the directory's own.
        base: name or path of the base model, where known.
        results: the section that results.py made.
        notes: what else someone who serves it must know, a sentence each.
    """
    licence, base = base_licence(base), hub_name(base)
    lora = manifest.kind == "lora"
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if lora else "finetune") if base else None,
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-generation",
        language=[code for code in _codes(origin, manifest) if code not in ("und", "")] or None,
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        tags=["cc-tuning", "multilingual", *(["lora"] if lora else [])],
    )
    of = f"`{base}`" if base else "its base (a model on the machine it was trained on)"
    spoken = ", ".join(_spoken(code) for code in manifest.languages) or "languages that its record does not name"
    whole = "with a modelling file of its own" if manifest.kind == "code" else "a plain checkpoint"
    what = f"A LoRA for {of}" if lora else f"{of[0].upper()}{of[1:]}, fine-tuned: {whole}"
    borrowed = (
        "" if origin.connection.connection == "none" else f", borrowing from {_spoken(manifest.reference_language)}"
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"{what}. Trained in {spoken}{borrowed}.",
        f"## Use\n\n{_use(manifest, name, base)}",
        "\n".join(f"- {note}" for note in [*_rules(manifest), *notes]),
        f"## Method\n\n{_method(origin)}",
        f"## Data\n\n{_data(origin)}",
        f"## Results\n\n{results}",
        f"## Licence\n\n{_licence(base, licence)}",
        CITE,
    ]
    return "\n\n".join(part for part in parts if part)


def _codes(origin: Origin, manifest: Manifest) -> list[str]:
    own = [manifest.reference_language]
    return [*manifest.languages, *(own if origin.record and own[0] in origin.record["data"]["languages"] else [])]


def _spoken(code: str) -> str:
    known = language_name(code)
    return f"{known} (`{code}`)" if known != code else f"`{code}`"


def _use(manifest: Manifest, name: str, base: str | None) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig"]
    if manifest.kind == "lora":
        lines += ["from peft import PeftModel"]
    # The tokenizer reads config.json first, whose auto_map asks for consent.
    trust = ", trust_remote_code=True" if manifest.kind == "code" else ""
    lines += ["", f'name = "{name}"', f"tokenizer = AutoTokenizer.from_pretrained(name{trust})"]
    if manifest.kind == "lora":
        lines += [f'base = AutoModelForCausalLM.from_pretrained("{base or "THE BASE"}", dtype="auto")']
        lines += ["model = PeftModel.from_pretrained(base, name)"]
    else:
        lines += [f'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto"{trust})']
    if manifest.chat:
        lines += ['messages = [{"role": "user", "content": "…"}]']
        lines += ["inputs = tokenizer.apply_chat_template("]
        lines += ['    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"', ")"]
    else:
        lines += ['inputs = tokenizer("…", return_tensors="pt")']
    stop = f', stop_strings=["{manifest.stop}"], tokenizer=tokenizer' if manifest.stop else ""
    lines += ["ends = GenerationConfig.from_pretrained(name)  # where an answer ends"]
    lines += [f"answer = model.generate(**inputs, generation_config=ends, max_new_tokens=256{stop})"]
    lines += ['print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return "```python\n" + "\n".join(lines) + "\n```"


def _rules(manifest: Manifest) -> list[str]:
    if manifest.chat:
        rules = ["Prompts were rendered in training with the chat template that lies beside (`chat_template.jinja`)."]
    else:
        rules = [
            "Prompts were plain text in training, with no chat template, and there is none here: give the prompt as "
            "it is (`/v1/completions` of a server, not `/v1/chat/completions`)."
        ]
    if manifest.stop_token_ids:
        ids = ", ".join(map(str, manifest.stop_token_ids))
        rules.append(f"An answer ends at token {ids} (`generation_config.json`).")
    if manifest.stop:
        rules.append(f"A turn ends in ordinary text, {manifest.stop!r}: send it as `stop` with each request.")
    if manifest.kind == "lora":
        rules.append(
            f"Made from the base's weights, and right on those alone. {_spoken(manifest.reference_language)} can be "
            "left to the base, request by request."
        )
    return rules


def _method(origin: Origin) -> str:
    if not origin.record:
        told = "The record of the run was not found at export: data and training options are not known."
    else:
        versions = ", ".join(f"{key} {value}" for key, value in origin.record["versions"].items() if key != "platform")
        tuned = {"full": "all weights of the base", "lora": "a LoRA on the base", "connection": "nothing else"}
        what = tuned.get(str(origin.options.get("tune", "full")), "")
        told = f"Tuned beside the connection: {what}. Options that differ from the defaults:\n\n```yaml\n"
        told += f"{_recipe(origin.options)}```\n\n{versions}."
    method = describe_method(origin.connection, origin.reference_language)
    table = "" if origin.connection.connection == "none" else f"{option_table(origin.connection)}\n\n"
    return f"{method}\n\n{table}{told}"


def _recipe(options: dict[str, Any]) -> str:
    """The run's options without what says where, and without the hub's token."""
    kept = {key: _short(value) for key, value in options.items() if key not in PLACES and not key.startswith("hub_")}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _short(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _data(origin: Origin) -> str:
    if not origin.record:
        return "Not known (see above)."
    data = origin.record["data"]
    lines = [
        f"{data['rows']} rows: {data['with_response']} with a response, {data['without_response']} for the alignment "
        "alone. " + ", ".join(f"{_spoken(code)} {count}" for code, count in sorted(data["languages"].items())) + ".",
    ]
    parallel = origin.record.get("parallel") or {"pairs": 0, "sources": []}
    if parallel["pairs"]:
        spoken = ", ".join(f"{_spoken(code)} {count}" for code, count in sorted(parallel["languages"].items()))
        lines.append(f"{parallel['pairs']} pairs of parallel text without answers: {spoken}.")
    table_rows = []
    for source in [*data["sources"], *parallel["sources"]]:
        path, prints = str(source.get("path", "?")), dict(source.get("fingerprints") or {})
        counts = ", ".join(f"{code} {count}" for code, count in sorted((source.get("languages") or {}).items()))
        licences = "; ".join(row_licences(path, prints.values())) or "not known"
        name = Path(path).name if Path(path).is_absolute() or Path(path).exists() else path
        marks = "; ".join(f"{Path(file).name} `{value}`" for file, value in prints.items())
        rows = source.get("rows", source.get("pairs", "?"))
        table_rows.append([name, rows, counts, licences, marks])
    lines += ["", table(["source", "rows", "languages", "licence", "fingerprint"], table_rows, "lr")]
    return "\n".join(lines)


def _licence(base: str | None, licence: Licence | None) -> str:
    who = f"`{base}`" if base else "the base"
    if licence is None:
        told = f"The licence of {who} applies to this model; which it is, its card did not say here: look it up."
    else:
        name = f"{licence.name} ({licence.id})" if licence.name else licence.id
        link = f" ({licence.link})" if licence.link else ""
        told = f"The licence of {who} applies to this model: {name}{link}, as the base's own card says."
    return (
        f"{told} Pass its text and notices on where it asks for that. The rows may bind you too (see Data); "
        "CC-Tuning, which is Apache-2.0, does not."
    )
