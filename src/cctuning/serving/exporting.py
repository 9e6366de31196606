"""Export a run, or a checkpoint of one, as a directory that other software loads.

Beside the weights it has the tokenizer with the chat template of training (and no other), the generation config with
the stop tokens, a model card, a Modelfile and a manifest (manifest.py). A failed export leaves nothing behind.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.evaluation.saved_results import ScoredRun, model_hash, read_run
from cctuning.model.exportable import original_vocabulary
from cctuning.model.loading import Loaded, load, load_tokenizer, torch_dtype
from cctuning.model.lora import check_vocabulary, export_lora
from cctuning.model.merge import check_adapter_mergeable, untie
from cctuning.model.merge_files import open_merge
from cctuning.model.sites import unwrap
from cctuning.model.verification import Agreement, check_export
from cctuning.serving.answering import encoder_of
from cctuning.serving.base_files import base_files, write_config, write_tokenizer
from cctuning.serving.engines import MODELFILE, check_vllm, modelfile
from cctuning.serving.manifest import Manifest
from cctuning.serving.model_card import model_card
from cctuning.serving.remote_code import write_code
from cctuning.serving.stop_tokens import generation_config, stop_text
from cctuning.serving.trained_run import TrainedRun, check_not_quantized, read_trained_run
from cctuning.training.card import hub_name

FORMATS = ("merged", "lora", "code")
PROBES = ("?", "a b", "1 + 1 = ", "Habari gani?")  # prompts that the saved tokenizer is checked with


@dataclass
class Exported:
    """What was written.

    Attributes:
        manifest: the manifest.
        notes: sentences for whoever serves the model.
        vllm: whether vLLM loads it, and why not; None unless it is a LoRA.
        checked: how the export, loaded again, agrees with the run.
        url: address on the hub, if it was uploaded.
    """

    manifest: Manifest
    notes: list[str]
    vllm: str | None
    checked: Agreement
    url: str | None = None


def export(
    path: str,
    format: str,
    directory: Path,
    *,
    dtype: str = "auto",
    max_shard_size: str | None = None,
    results: Sequence[str] = (),
    push_to_hub: str | None = None,
    private: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Export the run, checkpoint or model directory `path`.

    Args:
        format: `merged` (a plain checkpoint), `lora` (a PEFT LoRA for the base) or `code` (a checkpoint with a
            modeling file, for a nonlinear transform).
        directory: to write; must not exist.
        dtype, max_shard_size: of a merged checkpoint; by default as trained, and as transformers splits it.
        results: directories of `cctuning evaluate`, for the model card.
        push_to_hub: repository to upload to; a new one is `private` if that is set.

    Raises:
        UserError: `directory` exists, an option or record is not valid, or the model cannot be exported in this
            format; nothing is written. If only the upload fails, the directory is complete.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: expected {', '.join(FORMATS)}.")
    if directory.exists():
        raise UserError(f"--output {directory}: exists already; give a directory that does not exist.")
    kind = torch_dtype(dtype)
    if format == "lora" and (kind is not None or max_shard_size is not None):
        option = "--dtype" if kind is not None else "--max_shard_size"
        raise UserError(f"{option}: only for a merged checkpoint; a LoRA is one file in the dtype of training.")
    if max_shard_size is not None and not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", max_shard_size, re.IGNORECASE):
        raise UserError(f"--max_shard_size {max_shard_size!r}: expected a size like 5GB or 500MB.")
    if private and push_to_hub is None:
        raise UserError("--private: only with --push_to_hub.")
    if push_to_hub is not None:
        check_push(push_to_hub)
    run = read_trained_run(path)
    check_not_quantized(run, trust_remote_code)
    scored = [read_run(Path(result).name, Path(result)) for result in results]
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _disk_errors(directory):
            name = push_to_hub or directory.name
            exported = _write(run, format, partial, name, kind, max_shard_size, scored, trust_remote_code)
            partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if push_to_hub is not None:
        exported.url = push(directory, push_to_hub, private=private)
    return exported


def _write(
    run: TrainedRun,
    format: str,
    directory: Path,
    name: str,
    dtype: Any,
    max_shard_size: str | None,
    scored: Sequence[ScoredRun],
    trust_remote_code: bool,
) -> Exported:
    """Write weights, tokenizer, configs, manifest, Modelfile and, with this `name`, the model card."""
    # Merging file by file needs one module in memory, hashing for results the whole model.
    by_file = open_merge(run.path, trust_remote_code) if format == "merged" and not scored else None
    loaded = by_file.loaded if by_file is not None else load(run.path, trust_remote_code=trust_remote_code)
    hashes = _hashes(loaded, scored)
    encoder = encoder_of(loaded)
    generation = generation_config(encoder, unwrap(loaded.model))
    size = {"max_shard_size": max_shard_size} if max_shard_size else {}
    if by_file is not None:
        limit = {"limit": convert_file_size_to_int(max_shard_size.upper())} if max_shard_size else {}
        loaded.model.generation_config = generation
        by_file.write(directory, dtype, **limit)
    elif format == "merged":
        model: Any = _merge_in_memory(loaded)
        if dtype is not None:
            model = model.to(dtype)  # after merging, which is done in float32
        model.generation_config = generation
        model.save_pretrained(directory, **size)
        del model
    else:
        if format == "lora":
            _write_lora(loaded, run.path, directory)
        else:
            if isinstance(loaded.model, PeftModel):
                untie(unwrap(loaded.model))
            write_code(loaded, directory, dtype, max_shard_size)
        generation.save_pretrained(directory)
    if not encoder.chat:  # a server would use the base's template, which was not used in training
        encoder.tokenizer.chat_template = None
    base = loaded.base
    files = base_files(base)
    write_tokenizer(directory, files, encoder.tokenizer)
    if format != "lora":
        write_config(directory, files)
    del loaded, by_file  # before the export is loaded
    checked = check_export(run.path, directory, format, base, trust_remote_code=trust_remote_code)
    if scored:
        hashes |= _hashes(load(str(directory), trust_remote_code=trust_remote_code or format == "code"), scored)
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
    if format != "code":
        (directory / MODELFILE).write_text(modelfile(manifest, encoder, generation), encoding="utf-8")
    vllm = check_vllm(directory) if format == "lora" else None
    notes = _notes(run, manifest, encoder, directory, trust_remote_code)
    told = notes if vllm is None else [*notes, f"{vllm}."]
    card = model_card(run, manifest, name=name, base=base, scored=scored, hashes=hashes, notes=told)
    (directory / "README.md").write_text(card, encoding="utf-8")
    return Exported(manifest, notes, vllm, checked)


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turn errors of safetensors and tokenizers when writing fails (`… (os error 28)`) into `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or not re.search(r"\(os error \d+\)", str(error)):
            raise
        raise UserError(
            f"--output {directory}: cannot be written: {error}; free some space, or use another directory."
        ) from error


def _hashes(loaded: Loaded, scored: Sequence[ScoredRun]) -> set[str]:
    """Hashes of a model's weights, as `cctuning evaluate` records them for the modes of these results."""
    return {model_hash(loaded, run.record["settings"].get("mode", "student")) for run in scored}


def _write_lora(loaded: Loaded, path: str, directory: Path) -> None:
    if loaded.base is not None:
        check_vocabulary(loaded.model, original_vocabulary(loaded.base))
    if loaded.connected is not None:
        export_lora(loaded.connected, directory, base_name=loaded.base)
    elif isinstance(loaded.model, PeftModel):
        loaded.model.save_pretrained(str(directory))
    else:
        raise UserError(f"{path}: has no connection and no LoRA to export as a LoRA; use --format merged.")


def _merge_in_memory(loaded: Loaded) -> PreTrainedModel:
    if loaded.connected is not None:
        return loaded.connected.merge_and_unload()
    if isinstance(loaded.model, PeftModel):
        check_adapter_mergeable(loaded.model)
        untie(unwrap(loaded.model))
        return loaded.model.merge_and_unload()
    return loaded.model


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
        if list(found) == expected:
            continue
        if encoder.chat:
            raise UserError(
                f"{run.path}: its tokenizer renders a chat differently after saving and loading ({found}, expected "
                f"{expected}), so a server would send other prompts than in training; fix the tokenizer of the run."
            )
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


# -- upload -----------------------------------------------------------------------------------------------------------


def check_push(repo_id: str) -> None:
    """Raise `UserError` where `repo_id` is not a repository name, or the user is not logged in to the hub."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {repo_id!r}: {error}") from error
    if get_token() is None:
        raise UserError("--push_to_hub: not logged in to the hub; run `hf auth login`, or set HF_TOKEN.")


def push(directory: Path, repo_id: str, *, private: bool) -> str:
    """Upload `directory` to the model repository `repo_id`, created (`private`) if needed; returns its URL."""
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Export of cctuning")
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--push_to_hub {repo_id}: {first} The export in {directory} is complete; upload it with "
            f"`hf upload {repo_id} {directory}`."
        ) from error
    return str(url)
