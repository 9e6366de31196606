"""Export a run, or a checkpoint of one, as a directory that other software loads.

Beside the weights it has the tokenizer with the chat template of training (and no other), the generation config with
the stop tokens, a model card, a Modelfile and a manifest. A failed export leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.files import directory_atomically
from cctuning.model.loading import Loaded, load, load_tokenizer, revision_of, torch_dtype
from cctuning.model.lora import check_vocabulary, export_lora
from cctuning.model.merge import check_adapter_mergeable, untie
from cctuning.model.sites import unwrap
from cctuning.serving.answering import encoder_of
from cctuning.serving.base_files import base_files, write_config, write_tokenizer
from cctuning.serving.engines import MODELFILE, Manifest, check_vllm, modelfile
from cctuning.serving.model_card import model_card
from cctuning.serving.stop_tokens import generation_config, stop_text
from cctuning.serving.trained_run import TrainedRun, check_not_quantized, read_trained_run
from cctuning.serving.verification import Agreement, check_export
from cctuning.training.card import hub_name

FORMATS = ("merged", "lora")
PROBES = ("?", "a b", "1 + 1 = ", "Habari gani?")  # prompts that the saved tokenizer is checked with


@dataclass
class Exported:
    """What was written."""

    manifest: Manifest
    notes: list[str]  # for whoever serves the model
    vllm: str | None  # whether vLLM loads it, and why not; None unless it is a LoRA
    checked: Agreement  # of the export, loaded again, with the run


def export(
    path: str,
    format: str,
    directory: Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Exported:
    """Export the run, checkpoint or model directory `path`.

    Args:
        format: `merged` (a plain checkpoint) or `lora` (a PEFT LoRA for the base).
        directory: to write; must not exist.
        dtype: of a merged checkpoint; `auto`: the base's for a LoRA, else the run's.

    Raises:
        UserError: `directory` exists, an option or record is not valid, or the model cannot be exported in this
            format; nothing is written.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: expected {', '.join(FORMATS)}.")
    if directory.exists():
        raise UserError(f"--output {directory}: exists already; give a directory that does not exist.")
    kind = torch_dtype(dtype)
    if format == "lora" and kind is not None:
        raise UserError("--dtype: only for a merged checkpoint; a LoRA is one file in the dtype of training.")
    run = read_trained_run(path)
    check_not_quantized(run, trust_remote_code)
    try:
        with directory_atomically(directory) as partial:
            return _write(run, format, partial, directory.name, kind, trust_remote_code)
    except Exception as error:
        if isinstance(error, (OSError, UserError)) or "(os error " not in str(error):
            raise
        # safetensors and tokenizers raise other error types if the disk cannot be written
        raise UserError(
            f"--output {directory}: cannot be written: {error}; free some space, or use another directory."
        ) from error


def _write(
    run: TrainedRun,
    format: str,
    directory: Path,
    name: str,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
) -> Exported:
    """Write weights, tokenizer, configs, manifest, Modelfile and, with this `name`, the model card."""
    loaded = load(run.path, trust_remote_code=trust_remote_code)
    revision = run.options.get("revision") or revision_of(run.weights)
    encoder = encoder_of(loaded.tokenizer, loaded.run)
    generation = generation_config(encoder, unwrap(loaded.model))
    if format == "merged":
        model: Any = _merge(loaded, dtype)
        model.generation_config = generation
        model.save_pretrained(directory)
        del model
    else:
        _write_lora(loaded, run.path, directory, revision)
        generation.save_pretrained(directory)
    if not encoder.chat:  # a server would use the base's template, which was not used in training
        encoder.tokenizer.chat_template = None
    base = loaded.base
    files = base_files(base, revision)
    write_tokenizer(directory, files, encoder.tokenizer)
    if format != "lora":
        write_config(directory, files)
    del loaded  # before the export is loaded
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    checked = check_export(run.path, directory, format, base, **options)
    stops = generation.eos_token_id
    manifest = Manifest(
        kind=format,
        base=base if format == "lora" else hub_name(base),
        reference_language=run.reference_language,
        languages=run.languages,
        chat=encoder.chat,
        stop_token_ids=[] if stops is None else [stops] if isinstance(stops, int) else list(stops),
        stop=stop_text(encoder),
    )
    manifest.write(directory)
    (directory / MODELFILE).write_text(modelfile(manifest, encoder, generation), encoding="utf-8")
    vllm = check_vllm(directory) if format == "lora" else None
    notes = _notes(run, manifest, encoder, directory, trust_remote_code)
    if format == "lora" and revision:
        notes.append(f"The base is revision {revision!r} of {base}: load that one, as AutoPeftModelForCausalLM does.")
    told = notes if vllm is None else [*notes, f"{vllm}."]
    card = model_card(run, manifest, name=name, base=base, notes=told)
    (directory / "README.md").write_text(card, encoding="utf-8")
    return Exported(manifest, notes, vllm, checked)


def _write_lora(loaded: Loaded, path: str, directory: Path, revision: str | None) -> None:
    check_vocabulary(loaded.model, loaded.base)
    if loaded.connected is not None:
        export_lora(loaded.connected, directory, base_name=loaded.base, revision=revision)
    elif isinstance(loaded.model, PeftModel):
        loaded.model.save_pretrained(str(directory))
    else:
        raise UserError(f"{path}: has no connection and no LoRA to export as a LoRA; use --format merged.")


def _merge(loaded: Loaded, dtype: torch.dtype | None) -> PreTrainedModel:
    model: Any = loaded.connected or loaded.model
    if dtype is not None:  # before the merge, which rounds to the type of the weights
        model.to(torch.promote_types(loaded.model.dtype, dtype))
    if isinstance(model, PeftModel):
        check_adapter_mergeable(model)
        untie(unwrap(model))
    if model is not loaded.model or isinstance(model, PeftModel):
        model = model.merge_and_unload()
    return model if dtype is None else model.to(dtype)


def _notes(
    run: TrainedRun, manifest: Manifest, encoder: Encoder, directory: Path, trust_remote_code: bool
) -> list[str]:
    """Notes for this export; raises `UserError` if the saved tokenizer renders chats differently from training."""
    notes = []
    if not run.record:
        notes.append("The record of the run was not found; the model card has no data and no training options.")
    written = load_tokenizer(str(directory), trust_remote_code=trust_remote_code)
    for probe in PROBES:
        expected = encoder.prompt_ids(probe)
        if encoder.chat:
            chat = [{"role": "user", "content": probe}]
            found: Any = written.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        else:
            found = written(probe)["input_ids"]
        if list(found) != expected and encoder.chat:
            raise UserError(
                f"{run.path}: its tokenizer renders a chat differently after saving and loading ({found}, expected "
                f"{expected}), so a server would send other prompts than in training; fix the tokenizer of the run."
            )
        if list(found) != expected:
            notes.append(
                f"A server tokenizes a prompt differently from training ({list(found)}, in training {expected}, for "
                f"{probe!r}): send token ids."
            )
            break
    if manifest.kind == "lora" and manifest.base is not None and Path(manifest.base).exists():
        notes.append(
            "The adapter's config names its base by a local path: elsewhere, load the base yourself, or change "
            "base_model_name_or_path."
        )
    return notes
