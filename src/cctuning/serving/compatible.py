"""An export loads where its base loads: config and tokenizer are the base's own files, with what training changed.

transformers 5 writes both in a form of its own: `rope_parameters`, which transformers 4 passes over without a word
(the model then runs with the wrong frequencies), and a tokenizer class that transformers 4 does not have. Servers lag
behind, so what the base's publisher wrote is kept, and older keys are written beside newer ones.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from cctuning.files import write_atomically
from cctuning.model.loading import LOADING_ERRORS

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
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


def files_of(base: str | None) -> Path | None:
    """The directory of the base's config and tokenizer, fetched where it is a name on the hub; None: not to be had."""
    if base is None:
        return None
    if Path(base).is_dir():
        return Path(base)
    with suppress(*LOADING_ERRORS):
        return Path(snapshot_download(base, allow_patterns=[CONFIG, *TOKENIZER_FILES]))
    return None


# -- config -----------------------------------------------------------------------------------------------------------


def keep_config(directory: Path, base: Path | None) -> None:
    """Rewrite `directory`'s config.json, as transformers wrote it, as the base's own with what is not as it was there.

    Args:
        base: the base's directory; None: only the older keys are added.
    """
    written = _read(directory / CONFIG)
    config = dict(written)
    if base is not None and (base / CONFIG).is_file():
        with suppress(*LOADING_ERRORS), tempfile.TemporaryDirectory() as scratch:
            AutoConfig.from_pretrained(base).save_pretrained(scratch)
            unchanged = _read(Path(scratch) / CONFIG)  # the base's, in the words of this transformers
            changed = {key: value for key, value in written.items() if unchanged.get(key) != value}
            own = _read(base / CONFIG)
            gone = {key for key in unchanged if key not in written}
            config = {key: value for key, value in own.items() if key not in gone} | changed
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:  # a text model's too
        _add_older(part)
    write_atomically(directory / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _add_older(config: dict[str, Any]) -> None:
    """Beside `dtype` and `rope_parameters` the keys that transformers 4 reads; what is there already stays."""
    if isinstance(config.get("dtype"), str):
        config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return
    if isinstance(rope.get("full_attention"), dict):  # by kind of layer, as Gemma 3 has it
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and "rope_theta" in local:
            config.setdefault("rope_local_base_freq", local["rope_theta"])
        rope = rope["full_attention"]
    older = dict(rope)
    if "rope_theta" in older:
        theta = older.pop("rope_theta")
        config.setdefault("rotary_emb_base" if config.get("model_type") == "gpt_neox" else "rope_theta", theta)
    if "partial_rotary_factor" in older:
        share = older.pop("partial_rotary_factor")
        config.setdefault("rotary_pct" if config.get("model_type") == "gpt_neox" else "partial_rotary_factor", share)
    if older.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", older)


# -- tokenizer --------------------------------------------------------------------------------------------------------


def keep_tokenizer(directory: Path, base: Path | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `tokenizer` to `directory`: the base's own files if it has the base's tokens, else as transformers does.

    Args:
        base: the base's directory, if it is at hand.
        tokenizer: as training had it; its chat template, or that it has none, is what is written.
    """
    before = None
    if base is not None:
        with suppress(*LOADING_ERRORS):
            before = AutoTokenizer.from_pretrained(base)
    directory.mkdir(parents=True, exist_ok=True)
    if base is not None and before is not None and _same_tokens(before, tokenizer):
        copied = _copy(directory, base, before, tokenizer)
        if _reads_as(directory, tokenizer):
            return
        for file in copied:  # by their class alone transformers reads them otherwise than beside the base's config
            file.unlink(missing_ok=True)
    tokenizer.save_pretrained(directory)
    _name_older_class(directory, tokenizer)


def _copy(
    directory: Path, base: Path, before: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> list[Path]:
    """Copy the base's files, with what is another in `tokenizer` than in its own (`before`); what was written."""
    written = [directory / TEMPLATE]
    for pattern in TOKENIZER_FILES:
        for file in base.glob(pattern):
            written.append(directory / file.relative_to(base))
            written[-1].parent.mkdir(exist_ok=True)
            shutil.copyfile(file, written[-1])
    _name_older_class(directory, tokenizer)
    changed = {name: getattr(tokenizer, name) for name in SPECIAL if getattr(tokenizer, name) != getattr(before, name)}
    if changed:
        for name in (TOKENIZER, "special_tokens_map.json"):
            if (directory / name).is_file():
                _write(directory / name, _read(directory / name) | changed)
    if tokenizer.chat_template != before.chat_template:
        _replace_template(directory, tokenizer.chat_template)
    return written


def _reads_as(directory: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what was written is read with the tokens of `tokenizer`."""
    with suppress(*LOADING_ERRORS):
        return _same_tokens(AutoTokenizer.from_pretrained(directory), tokenizer)
    return False


def _same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    cores = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (one, other)]
    if all(core is not None for core in cores):  # padding and truncation are settings of a call, and not the tokens'
        parts = [json.loads(core.to_str()) | {"padding": None, "truncation": None} for core in cores if core]
        return parts[0] == parts[1]
    return type(one) is type(other) and one.get_vocab() == other.get_vocab()


def _replace_template(directory: Path, template: str | dict[str, str] | None) -> None:
    for name in (TEMPLATE, "chat_template.json"):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / "additional_chat_templates", ignore_errors=True)
    config = _read(directory / TOKENIZER)
    config.pop("chat_template", None)
    _write(directory / TOKENIZER, config)
    if isinstance(template, str):
        (directory / TEMPLATE).write_text(template, encoding="utf-8")


def _name_older_class(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """`TokenizersBackend`, which transformers 4 does not have, by the name it had there, where both versions then read
    the same tokens: for some families transformers 5 takes the older name for the family's own class."""
    file = directory / TOKENIZER
    if not file.is_file() or _read(file).get("tokenizer_class") != "TokenizersBackend":
        return
    before = _read(file)
    _write(file, before | {"tokenizer_class": "PreTrainedTokenizerFast"})
    if not _reads_as(directory, tokenizer):
        _write(file, before)


def _read(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(record, dict)
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
