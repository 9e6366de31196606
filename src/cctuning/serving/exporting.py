"""A run, or a checkpoint of one, written out as what any server loads: everything it needs, whole or not at all.

Beside the weights: tokenizer, the chat template that training used (and no other), where generation ends, a model
card, and a manifest for programs beside the server (manifest.py).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.evaluation.saved_results import ScoredRun, model_hash
from cctuning.model.exportable import original_vocabulary
from cctuning.model.loading import Loaded, load, load_tokenizer, torch_dtype
from cctuning.model.lora import check_vocabulary, export_lora
from cctuning.model.merge import check_adapter_mergeable, untie
from cctuning.model.merge_files import open_merge
from cctuning.model.sites import unwrap
from cctuning.model.verification import Agreement, check_export
from cctuning.serving.answering import encoder_of
from cctuning.serving.card import model_card
from cctuning.serving.compatible import files_of, keep_config, keep_tokenizer
from cctuning.serving.hub import check_push, push
from cctuning.serving.manifest import Manifest
from cctuning.serving.origin import Origin, read_origin, refuse_quantised
from cctuning.serving.remote_code import write_code
from cctuning.serving.results import read_results, results_section
from cctuning.serving.stops import generation_config, stop_text
from cctuning.serving.vllm import Readiness, check_vllm
from cctuning.training.card import hub_name

PROBES = ("?", "a b", "1 + 1 = ", "Habari gani?")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        manifest: what it is.
        notes: what a person who serves it should know, a sentence each.
        vllm: of a LoRA, what vLLM will make of it.
        checked: how what was written, loaded again, answers against the run.
        url: on the hub, where it was pushed.
    """

    manifest: Manifest
    notes: list[str]
    vllm: Readiness | None
    checked: Agreement
    url: str | None


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
    """Write what `path` (a run or a checkpoint of one) becomes.

    Args:
        path: as in `loading.load`.
        format: `merged` (a plain checkpoint), `lora` (a PEFT LoRA for the base) or `code` (a checkpoint with a
            modelling file, for a non-linear transform).
        directory: to write; must not exist.
        dtype: of a merged checkpoint; `auto` keeps that of the trained weights.
        max_shard_size: of a merged checkpoint's files, like `5GB`; None: the default of transformers.
        results: directories of `cctuning evaluate`, for the card.
        push_to_hub, private: a repository to upload it to, and whether one that is made for it is private.

    Raises:
        UserError: `directory` exists, an option or a record is bad, or the model cannot be exported so; nothing is
            left behind. Where only the upload fails, the directory is whole.
    """
    if directory.exists():
        raise UserError(f"--output {directory}: exists already; name a directory that does not.")
    kind = torch_dtype(dtype)
    if format == "lora" and (kind is not None or max_shard_size is not None):
        option = "--dtype" if kind is not None else "--max_shard_size"
        raise UserError(f"{option}: of a merged checkpoint; a LoRA is one file in the dtype it was trained in.")
    if max_shard_size is not None and not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", max_shard_size, re.IGNORECASE):
        raise UserError(f"--max_shard_size {max_shard_size!r}: expected a size like 5GB or 500MB.")
    if private and push_to_hub is None:
        raise UserError("--private: goes with --push_to_hub.")
    if push_to_hub is not None:
        check_push(push_to_hub)
    origin = read_origin(path)
    refuse_quantised(origin, trust_remote_code)
    scored = read_results(results)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _disk_errors(directory):
            # A merge needs one module in memory at a time, unless figures are to be matched with the weights of all.
            by_file = open_merge(path, trust_remote_code) if format == "merged" and not scored else None
            loaded = by_file.loaded if by_file is not None else load(path, trust_remote_code=trust_remote_code)
            marks = _fingerprints(loaded, scored)
            encoder = encoder_of(loaded)
            ends = generation_config(encoder, unwrap(loaded.model))
            if format == "lora":
                _write_lora(loaded, path, partial)
                ends.save_pretrained(partial)
            elif format == "code":
                if isinstance(loaded.model, PeftModel):
                    untie(unwrap(loaded.model))
                write_code(loaded, partial, kind, max_shard_size)
                ends.save_pretrained(partial)
            elif by_file is not None:
                loaded.model.generation_config = ends
                limit = {} if max_shard_size is None else {"limit": convert_file_size_to_int(max_shard_size.upper())}
                by_file.write(partial, kind, **limit)
            else:
                model: Any = _plain(loaded)
                if kind is not None:
                    model = model.to(kind)  # after merging, which is done in fp32
                model.generation_config = ends
                model.save_pretrained(partial, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
                del model
            if not encoder.chat:  # a server would render with the base's, which training never saw
                encoder.tokenizer.chat_template = None
            base = loaded.base
            own = files_of(base)
            keep_tokenizer(partial, own, encoder.tokenizer)
            if format != "lora":
                keep_config(partial, own)
            del loaded, by_file  # what was written is loaded next
            checked = check_export(path, partial, format, base, trust_remote_code=trust_remote_code)
            if scored:
                own_code = trust_remote_code or format == "code"
                marks |= _fingerprints(load(str(partial), trust_remote_code=own_code), scored)
            stops = ends.eos_token_id
            manifest = Manifest(
                format,
                base if format == "lora" else hub_name(base),
                origin.reference_language,
                origin.languages,
                encoder.chat,
                [] if stops is None else [stops] if isinstance(stops, int) else list(stops),
                stop_text(encoder),
            )
            manifest.write(partial)
            ready = check_vllm(partial) if format == "lora" else None
            notes = _notes(origin, manifest, encoder, partial, trust_remote_code)
            card = model_card(
                origin,
                manifest,
                name=push_to_hub or directory.name,
                base=base,
                results=results_section(scored, marks),
                notes=[*notes, f"{ready}."] if ready is not None else notes,
            )
            (partial / "README.md").write_text(card, encoding="utf-8")
            partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    url = push(directory, push_to_hub, private=private) if push_to_hub is not None else None
    return Exported(manifest, notes, ready, checked, url)


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Within: what safetensors and tokenizers raise where the disk refuses (errors of their own, which end in
    `(os error 28)` or its like) is a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or not re.search(r"\(os error \d+\)", str(error)):
            raise
        raise UserError(
            f"--output {directory}: cannot be written: {error}; make room, or name another place."
        ) from error


def _fingerprints(loaded: Loaded, scored: Sequence[ScoredRun]) -> set[str]:
    """Of this model, as `cctuning evaluate` would take them in the modes that were scored."""
    if not scored:
        return set()
    return {model_hash(loaded, run.record["settings"].get("mode", "student")) for run in scored}


def _write_lora(loaded: Loaded, path: str, directory: Path) -> None:
    if loaded.base is not None:
        check_vocabulary(loaded.model, original_vocabulary(loaded.base))
    if loaded.connected is not None:
        export_lora(loaded.connected, directory, base_name=loaded.base)
    elif isinstance(loaded.model, PeftModel):
        loaded.model.save_pretrained(str(directory))
    else:
        raise UserError(f"{path}: neither connection nor LoRA in it; nothing to export as one. Use --format merged.")


def _plain(loaded: Loaded) -> PreTrainedModel:
    if loaded.connected is not None:
        return loaded.connected.merge_and_unload()
    if isinstance(loaded.model, PeftModel):
        check_adapter_mergeable(loaded.model)
        untie(unwrap(loaded.model))
        return loaded.model.merge_and_unload()
    return loaded.model


def _notes(
    origin: Origin, manifest: Manifest, encoder: Encoder, directory: Path, trust_remote_code: bool
) -> list[str]:
    """What there is to know beside the rules that the card gives for every export of its kind.

    Raises:
        UserError: the tokenizer as written renders chats otherwise than training did.
    """
    notes = []
    if not origin.record:
        notes.append("The run's record was not found, so the card says nothing of data and options.")
    written = load_tokenizer(str(directory), trust_remote_code=trust_remote_code)
    for probe in PROBES:
        wanted = encoder.prompt_ids(probe)
        if encoder.chat:
            chat = [{"role": "user", "content": probe}]
            served: Any = written.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        else:
            served = written(probe)["input_ids"]
        if list(served) == wanted:
            continue
        if encoder.chat:
            raise UserError(
                f"{origin.path}: its tokenizer renders a chat otherwise once saved and loaded again ({served} for "
                f"{wanted}); a server would ask the model what it never learned. Mend the tokenizer beside the run."
            )
        notes.append(
            f"A server's own tokenisation of a prompt differs from that of training ({list(served)} for {wanted}, of "
            f"{probe!r}): send token ids, or prompts as training saw them."
        )
        break
    if manifest.kind == "lora" and manifest.base is not None and Path(manifest.base).exists():
        notes.append(
            "The adapter's config names its base by a path, which holds where it was trained alone: hand the base to "
            "PEFT yourself, or mend base_model_name_or_path."
        )
    return notes
