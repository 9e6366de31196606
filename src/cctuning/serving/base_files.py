"""Write an export's config and tokenizer as the base's own files, with what training changed.

transformers 5 saves both in a new form: `rope_parameters`, which transformers 4 ignores (the model then runs with
wrong frequencies), and a tokenizer class that transformers 4 lacks. Keeping the base's files, with old keys beside new
ones, makes an export load wherever its base loads.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from cctuning.files import write_json
from cctuning.model.loading import LOADING_ERRORS

CONFIG, TOKENIZER, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*",
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def base_files(base: str | None, revision: str | None = None) -> Path | None:
    """Directory with the base's config and tokenizer, downloaded for a hub name; None where they cannot be read."""
    if base is None or Path(base).is_dir():
        return None if base is None else Path(base)
    with suppress(*LOADING_ERRORS):
        return Path(snapshot_download(base, revision=revision, allow_patterns=[CONFIG, *TOKENIZER_FILES]))
    return None


# -- config -----------------------------------------------------------------------------------------------------------


def write_config(directory: Path, base: Path | None) -> None:
    """Rewrite the config.json that transformers saved in `directory`: the base's own (if any), with what differs."""
    saved = _read(directory / CONFIG)
    config = dict(saved)
    if base is not None and (base / CONFIG).is_file():
        with suppress(*LOADING_ERRORS):
            # The base's config as this version of transformers saves it.
            unchanged = json.loads(AutoConfig.from_pretrained(base).to_json_string())
            changed = {key: value for key, value in saved.items() if unchanged.get(key) != value}
            kept = {key: value for key, value in _read(base / CONFIG).items() if key in saved or key not in unchanged}
            config = kept | changed
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:  # a text model's too
        add_old_keys(part)
    write_json(directory / CONFIG, config)


def add_old_keys(config: dict[str, Any]) -> None:
    """Add the keys of transformers 4 for `dtype` and `rope_parameters`; RoPE keys that are there stay."""
    if isinstance(config.get("dtype"), str):
        config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return
    if isinstance(rope.get("full_attention"), dict):  # one per layer type, as in Gemma 3
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and "rope_theta" in local:
            config.setdefault("rope_local_base_freq", local["rope_theta"])
        rope = rope["full_attention"]
    rope, neox = dict(rope), config.get("model_type") == "gpt_neox"
    for key, of_neox in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if key in rope:
            config.setdefault(of_neox if neox else key, rope.pop(key))
    if rope.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", rope)


# -- tokenizer --------------------------------------------------------------------------------------------------------


def write_tokenizer(directory: Path, base: Path | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer to `directory`: the base's own files if they have the same tokens, else as transformers does.

    The chat template is that of `tokenizer`, if it has one.
    """
    original = None
    if base is not None:
        with suppress(*LOADING_ERRORS):
            original = AutoTokenizer.from_pretrained(base)
    directory.mkdir(parents=True, exist_ok=True)
    if base is not None and original is not None and _same_tokens(original, tokenizer):
        copied = _copy(directory, base, original, tokenizer)
        if _loads_as(directory, tokenizer):
            return
        for file in copied:  # some files load differently without the base's config beside them
            file.unlink(missing_ok=True)
    tokenizer.save_pretrained(directory)
    _use_old_class_name(directory, tokenizer)


def _copy(
    directory: Path, base: Path, original: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> list[Path]:
    """Copy the base's files and apply the differences of `tokenizer` from `original`; returns the files written."""
    written = [directory / TEMPLATE]
    for file in (file for pattern in TOKENIZER_FILES for file in base.glob(pattern)):
        written.append(directory / file.relative_to(base))
        written[-1].parent.mkdir(exist_ok=True)
        shutil.copyfile(file, written[-1])
    _use_old_class_name(directory, tokenizer)
    differing = {name: getattr(tokenizer, name) for name in SPECIAL}
    differing = {name: token for name, token in differing.items() if token != getattr(original, name)}
    for name in (TOKENIZER, "special_tokens_map.json"):
        if differing and (directory / name).is_file():
            write_json(directory / name, _read(directory / name) | differing)
    if tokenizer.chat_template != original.chat_template:
        for name in (TEMPLATE, "chat_template.json"):
            (directory / name).unlink(missing_ok=True)
        shutil.rmtree(directory / "additional_chat_templates", ignore_errors=True)
        if (directory / TOKENIZER).is_file():
            config = {key: value for key, value in _read(directory / TOKENIZER).items() if key != "chat_template"}
            write_json(directory / TOKENIZER, config)
        if isinstance(tokenizer.chat_template, str):
            (directory / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    return written


def _loads_as(directory: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the files in `directory` load with the tokens of `tokenizer`."""
    with suppress(*LOADING_ERRORS):
        return _same_tokens(AutoTokenizer.from_pretrained(directory), tokenizer)
    return False


def _same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    backends = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (one, other)]
    if all(backend is not None for backend in backends):  # padding and truncation are options of a call
        first, second = (
            json.loads(core.to_str()) | {"padding": None, "truncation": None} for core in backends if core
        )
        return bool(first == second)
    return type(one) is type(other) and one.get_vocab() == other.get_vocab()


def _use_old_class_name(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace `TokenizersBackend` by its name in transformers 4, unless transformers 5 would then load other tokens:
    for some families it takes the old name for the family's own class."""
    file = directory / TOKENIZER
    if not file.is_file() or _read(file).get("tokenizer_class") != "TokenizersBackend":
        return
    before = _read(file)
    write_json(file, before | {"tokenizer_class": "PreTrainedTokenizerFast"})
    if not _loads_as(directory, tokenizer):
        write_json(file, before)


def _read(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(record, dict)
    return record
