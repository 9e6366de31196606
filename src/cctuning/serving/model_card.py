"""Write the model card of an export: use, method, data, results and licence.

Everything is read from the run's records and from configs; what they do not contain is said to be unknown. Paths of
the training machine are shortened to their last part.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from cctuning.evaluation.results_table import METRIC_NAMES
from cctuning.evaluation.saved_results import ScoredRun, read_run
from cctuning.languages import language_name
from cctuning.markdown import table
from cctuning.serving.manifest import Manifest
from cctuning.serving.trained_run import TrainedRun
from cctuning.training.card import CITE, describe_method, hub_name, option_table

# Options of a run that name places of the training machine.
# fmt: off
PLACES = (
    "output_dir", "model", "tokenizer", "data", "eval_data", "logging_dir", "run_name", "report_to", "push_to_hub",
)
# fmt: on
MODES = {"student": "", "bypass": ", transform bypassed", "parallel": ", with the prompt in the reference language"}


def model_card(
    run: TrainedRun, manifest: Manifest, *, name: str, base: str | None, results: str, notes: Sequence[str]
) -> str:
    """The card as Markdown.

    Args:
        name: hub name or directory that the model is loaded by.
        base: name or path of the base model, where it is known.
        results: the text of `results_section`.
        notes: further sentences for whoever serves the model.
    """
    licence, base = base_licence(base), hub_name(base)
    lora, kind = manifest.kind == "lora", manifest.kind
    own = [manifest.reference_language] if run.record else []
    own = [code for code in own if code in run.record["data"]["languages"]]
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if lora else "finetune") if base else None,
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-generation",
        language=[code for code in [*manifest.languages, *own] if code not in ("und", "")] or None,
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        tags=["cc-tuning", "multilingual", *(["lora"] if lora else [])],
    )
    model = f"`{base}`" if base else "a base model that is not on the hub"
    what = (
        "A LoRA adapter" if lora else "A fine-tuned checkpoint" if kind != "code" else "A checkpoint with model code"
    )
    languages = ", ".join(_name(code) for code in manifest.languages) or "unknown languages"
    connected = run.connection.connection != "none"
    reference = f", with {_name(manifest.reference_language)} as the reference language" if connected else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"{what} of {model}. Trained on {languages}{reference}.",
        f"## Use\n\n{_snippet(manifest, name, base)}",
        "\n".join(f"- {note}" for note in [*_rules(manifest), *notes]),
        f"## Method\n\n{_method(run)}",
        f"## Data\n\n{_data(run)}",
        f"## Results\n\n{results}",
        f"## Licence\n\n{_licence(base, licence)}",
        CITE,
    ]
    return "\n\n".join(part for part in parts if part)


def _name(code: str) -> str:
    known = language_name(code)
    return f"{known} (`{code}`)" if known != code else f"`{code}`"


def _counts(languages: dict[str, int] | None) -> str:
    return ", ".join(f"{_name(code)} {count}" for code, count in sorted((languages or {}).items()))


def _basename(path: str) -> str:
    """The last part of a local path; a hub name stays."""
    return Path(path).name if Path(path).is_absolute() or Path(path).exists() else path


# -- use --------------------------------------------------------------------------------------------------------------


def _snippet(manifest: Manifest, name: str, base: str | None) -> str:
    lora = manifest.kind == "lora"
    # The tokenizer needs the argument too: it reads config.json, whose auto_map names the code.
    trust = ", trust_remote_code=True" if manifest.kind == "code" else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig"]
    lines += ["from peft import PeftModel"] if lora else []
    lines += ["", f'name = "{name}"', f"tokenizer = AutoTokenizer.from_pretrained(name{trust})"]
    if lora:
        lines += [f'base = AutoModelForCausalLM.from_pretrained("{base or "THE BASE"}", dtype="auto")']
        lines += ["model = PeftModel.from_pretrained(base, name)"]
    else:
        lines += [f'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto"{trust})']
    if manifest.chat:
        lines += ['messages = [{"role": "user", "content": "…"}]', "inputs = tokenizer.apply_chat_template("]
        lines += ['    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"', ")"]
    else:
        lines += ['inputs = tokenizer("…", return_tensors="pt")']
    stop = f', stop_strings=["{manifest.stop}"], tokenizer=tokenizer' if manifest.stop else ""
    lines += ["config = GenerationConfig.from_pretrained(name)  # with the stop tokens"]
    lines += [f"answer = model.generate(**inputs, generation_config=config, max_new_tokens=256{stop})"]
    lines += ['print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return "```python\n" + "\n".join(lines) + "\n```"


def _rules(manifest: Manifest) -> list[str]:
    if manifest.chat:
        rules = ["Prompts were rendered with the chat template in this directory (`chat_template.jinja`)."]
    else:
        rules = [
            "Prompts were plain text in training, so there is no chat template: send the prompt as it is "
            "(`/v1/completions` of a server, not `/v1/chat/completions`)."
        ]
    if manifest.stop_token_ids:
        rules.append(f"Stop tokens: {', '.join(map(str, manifest.stop_token_ids))} (`generation_config.json`).")
    if manifest.stop:
        rules.append(f"A turn ends with the text {manifest.stop!r}, which is no token: send it as `stop`.")
    if manifest.kind == "lora":
        rules.append(
            f"The adapter fits this base only. Prompts in {_name(manifest.reference_language)} can be answered by the "
            "base alone, request by request."
        )
    if manifest.kind != "code":
        rules.append("llama.cpp and Ollama: `Modelfile` has the commands, the prompt template and the stop strings.")
    return rules


# -- method and data --------------------------------------------------------------------------------------------------


def _method(run: TrainedRun) -> str:
    parts = [describe_method(run.connection, run.reference_language)]
    parts += [] if run.connection.connection == "none" else [option_table(run.connection)]
    if not run.record:
        return "\n\n".join([*parts, "The record of the run was not found: data and training options are not known."])
    tuned = {"full": "all weights of the base", "lora": "a LoRA on the base", "connection": "the connection alone"}
    kept = {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in run.options.items()
        if key not in PLACES and not key.startswith("hub_")  # the hub's token among them
    }
    options = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{key} {value}" for key, value in run.record["versions"].items() if key != "platform")
    what = tuned.get(str(run.options.get("tune", "full")), "")
    parts.append(f"Trained: {what}. Options that differ from the defaults:\n\n```yaml\n{options}```\n\n{versions}.")
    return "\n\n".join(parts)


def _data(run: TrainedRun) -> str:
    if not run.record:
        return "Not known (see above)."
    data, parallel = run.record["data"], run.record.get("parallel") or {"pairs": 0, "sources": []}
    text = f"{data['rows']} rows: {data['with_response']} with a response, {data['without_response']} for the "
    text += f"alignment only. {_counts(data['languages'])}."
    if parallel["pairs"]:
        text += f"\n{parallel['pairs']} pairs of parallel text without responses: {_counts(parallel['languages'])}."
    rows = []
    for source in [*data["sources"], *parallel["sources"]]:
        path, hashes = str(source.get("path", "?")), dict(source.get("fingerprints") or {})
        counts = ", ".join(f"{code} {count}" for code, count in sorted((source.get("languages") or {}).items()))
        licences = "; ".join(row_licences(path, hashes.values())) or "not known"
        files = "; ".join(f"{Path(file).name} `{value}`" for file, value in hashes.items())
        rows.append([_basename(path), source.get("rows", source.get("pairs", "?")), counts, licences, files])
    return f"{text}\n\n{table(['source', 'rows', 'languages', 'licence', 'files'], rows, 'lr')}"


# -- results ----------------------------------------------------------------------------------------------------------


def read_results(directories: Sequence[str]) -> list[ScoredRun]:
    """Finished results of `cctuning evaluate`.

    Raises:
        UserError: a directory has none, or they are unfinished or damaged.
    """
    return [read_run(Path(directory).name, Path(directory)) for directory in directories]


def results_section(runs: Sequence[ScoredRun], hashes: Collection[str]) -> str:
    """The results as Markdown, one table per run, copied from results.json.

    Args:
        runs: what `read_results` gave; may be empty.
        hashes: of this model's weights, as trained and as exported. Results with another hash are those of another
            model.
    """
    if not runs:
        return "No results were given for this card."
    parts = ["% ± standard error over n items. Chance is the score of guessing."]
    for run in runs:
        record, settings = run.record, run.record["settings"]
        name = Path(str(record["model"].get("name", run.path.name))).name
        own = record["model"].get("fingerprint") in hashes
        title = f"{'This model' if own else f'Another model: {name}'}{MODES.get(settings.get('mode', 'student'), '')}"
        tasks = sorted(run.tasks.values(), key=lambda task: (task.benchmark, task.language))
        header = ["benchmark", "language", "metric", "n", "%", "chance"]
        rows = table(header, [_cells(task.about) for task in tasks], "lllrrr")
        named = {**settings, **{f"{key} version": value for key, value in record.get("versions", {}).items()}}
        setup = ", ".join(f"{key} {value}" for key, value in named.items() if value is not None)
        parts.append(f"### {title}\n\n{rows}\n\n{setup}.")
    return "\n\n".join(parts)


def _cells(task: dict[str, Any]) -> list[Any]:
    figure = task["metrics"][task["metric"]]
    error = "" if figure["stderr"] is None else f" ± {100 * figure['stderr']:.1f}"
    chance = "" if task.get("chance") is None else f"{100 * task['chance']:.1f}"
    metric = METRIC_NAMES.get(task["metric"], task["metric"])
    return [task["benchmark"], task["language"], metric, task["items"], f"{100 * figure['value']:.1f}{error}", chance]


# -- licences ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Licence:
    """Licence in the metadata of a model card: the hub's identifier; name and link where that is `other`."""

    id: str
    name: str | None = None
    link: str | None = None


def base_licence(base: str | None) -> Licence | None:
    """Licence of the base model, from its own card (local README.md, or the hub); None where it cannot be read."""
    if not base:
        return None
    try:
        found = ModelCard.load(Path(base) / "README.md" if Path(base).is_dir() else base).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(found.get("license"), str):
        return None
    return Licence(found["license"], found.get("license_name"), found.get("license_link"))


def row_licences(path: str, hashes: Iterable[str]) -> list[str]:
    """Licences of the rows in `path`, from the card.json of `cctuning pair` beside them, if it is of the same files.

    Args:
        hashes: of the files that the run read.
    """
    place = Path(path)
    for folder in (place, place.parent, place.parent.parent):  # rows.jsonl, or rows/ with shards in it
        try:
            card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        files = card.get("files") if isinstance(card, dict) else None
        if isinstance(files, dict) and set(hashes) & set(files.values()):
            sources = [source for source in card.get("sources", []) if isinstance(source, dict)]
            named = [(_basename(str(source.get("path", "?"))), source.get("licence")) for source in sources]
            return [f"{name}: {licence or 'not given'}" for name, licence in named]
    return []


def _licence(base: str | None, licence: Licence | None) -> str:
    model = f"`{base}`" if base else "the base model"
    if licence is None:
        text = f"The licence of {model} applies to this model; its card does not name one: look it up."
    else:
        name = f"{licence.name} ({licence.id})" if licence.name else licence.id
        link = f" ({licence.link})" if licence.link else ""
        text = f"The licence of {model} applies to this model: {name}{link}, according to its model card."
    return (
        f"{text} Include its text and notices where it asks for them. The training data may have conditions of their "
        "own (see Data). CC-Tuning itself (Apache-2.0) sets none."
    )
