"""Load what a path or hub name stands for: a run, a checkpoint of one, an export, a LoRA, or any model.

No remote code runs unless `trust_remote_code` is set, and weights are read from safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cctuning.errors import UserError, nearest_path
from cctuning.model import serialization
from cctuning.model.connected import ConnectedModel
from cctuning.model.serialization import LOADING_ERRORS, LORA_CONFIG, first_line

RUN_FILE = "run.json"
MODEL_FOLDER = "model"


@dataclass
class Loaded:
    """A model ready to run.

    Attributes:
        model: a transformers or PEFT model (the one inside `connected`, where there is one).
        connected: the connected model; None for a model without a connection.
        tokenizer: tokenizer of the model.
        run: record of the training run it came from; empty if it came from none.
        base: name or path of the model it was trained from; None if unknown.
    """

    model: PreTrainedModel
    connected: ConnectedModel | None
    tokenizer: PreTrainedTokenizerBase
    run: dict[str, Any]
    base: str | None = None


def resolve(path: str) -> tuple[str, dict[str, Any]]:
    """Where the weights of `path` are, and the record of their run (empty if there is none)."""
    folder = Path(path)
    if (folder / RUN_FILE).is_file():
        run = read_record(folder)
        if run.get("status") != "finished":
            advice = (
                "continue it with cctuning train --config … --resume_from_checkpoint true, or name one of its "
                "checkpoint-… folders"
            )
            if not any(folder.glob("checkpoint-*")):
                advice = "it has no checkpoint; remove it, and train again"
            raise UserError(f"{path}: the run has not finished (status {run.get('status')!r}); {advice}.")
        if not (folder / MODEL_FOLDER).is_dir():
            raise UserError(f"{path}: {MODEL_FOLDER}/ is missing from a finished run: copy it again.")
        return str(folder / MODEL_FOLDER), run
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", LORA_CONFIG)):
        raise UserError(f"{path}: no {RUN_FILE}, config.json or {LORA_CONFIG} in it; expected a run or a model.")
    if folder.is_file():
        raise UserError(f"{path}: a file; expected a run, a model directory, or a hub name like org/name.")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"{path}: no such directory; expected a run, a model directory, or a hub name like org/name.")
    inside_run = folder.name == MODEL_FOLDER or folder.name.startswith("checkpoint-")
    return path, read_record(folder.parent) if inside_run and (folder.parent / RUN_FILE).is_file() else {}


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run directory; `UserError` if it is damaged."""
    return serialization.read_json(run / RUN_FILE, "the run directory is damaged")


def torch_dtype(name: str) -> torch.dtype | None:
    """The dtype with this name; None for `auto`."""
    dtype = getattr(torch, name, None)
    if name == "auto":
        return None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype: {name!r} is no dtype of weights; expected auto, float32, bfloat16 or float16.")
    return dtype


def load_base(
    name: str,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantisation: Any = None,
) -> PreTrainedModel:
    """A causal LM from a directory or the hub.

    Args:
        name: directory or hub name.
        dtype: `auto` (as saved) or a torch dtype's name.
        revision, trust_remote_code, attn_implementation: as in transformers.
        quantisation: a quantization_config of transformers; None: as the files are.
    """
    kind = torch_dtype(dtype)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        loader: Any = AutoModelForCausalLM
        model, info = loader.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=kind or "auto",
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **({} if quantisation is None else {"quantization_config": quantisation}),
        )
    except LOADING_ERRORS as error:
        raise UserError(f"model {name!r}: cannot be loaded: {first_line(error)}{_not_here(name)}") from error
    keep_differentiable(model)
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would start them at random and go on
        raise UserError(
            f"model {name!r}: {len(missing)} of its weights are missing (first: {missing[0]}): the checkpoint is "
            "incomplete or not that of a causal LM; copy it again, or use another model."
        )
    return model


def keep_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes (0.50) from repacking 4-bit weights on a CPU the first time they run in evaluation mode.

    Its kernel for the other packing has no gradient, and torch only warns: after one evaluation, or one reference
    pass, nothing below the last layer would learn.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`; `UserError` if it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise UserError(f"tokenizer of {name!r}: cannot be loaded: {first_line(error)}{_not_here(name)}") from error


def _not_here(name: str) -> str:
    """What to add to an error about a name that may be a mistyped path."""
    folder = Path(name).expanduser()
    return "" if folder.exists() else f" There is no directory {name}.{nearest_path(folder)}"


def tokenizer_of(where: str, base: str | None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `where`, or of its `base` if the directory has no tokenizer."""
    folder = Path(where)
    if base is None or not folder.is_dir() or (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(where, trust_remote_code=trust_remote_code)
    return load_tokenizer(base, revision=revision_of(folder), trust_remote_code=trust_remote_code)


def load(path: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> Loaded:
    """Load the model at `path`, with its connection if it has one."""
    where, run = resolve(path)
    folder = Path(where)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    base, source = base_of(folder, run)
    try:
        model: Any = load_base(source, revision=revision_of(folder), **options)
    except UserError as error:
        lora = folder / LORA_CONFIG
        if error.__cause__ is None or not lora.is_file() or Path(source).is_absolute() or Path(source).exists():
            raise
        raise UserError(
            f"{folder}: its base model {source!r} is neither a directory here nor on the hub. If it is a path "
            "relative to where training was started, start the command there, or write the absolute path as "
            f"base_model_name_or_path in {lora}. ({first_line(error.__cause__)})"
        ) from error
    connected = None
    if (folder / serialization.CONFIG_FILE).is_file():
        connected = ConnectedModel.from_pretrained(model, where)
        model = connected.model
    elif (folder / LORA_CONFIG).is_file():
        model = serialization.load_lora(model, folder)
    tokenizer = tokenizer_of(where, base, trust_remote_code)
    (connected or model).eval()
    return Loaded(model, connected, tokenizer, run, base)


def to_accelerator(loaded: Loaded) -> Loaded:
    """Move a loaded model to the accelerator, where there is one; `UserError` if it does not fit."""
    if torch.accelerator.is_available():
        module: Any = loaded.connected or loaded.model
        try:
            module.to(torch.accelerator.current_accelerator())
        except torch.OutOfMemoryError as error:
            raise UserError(
                "the model does not fit on the accelerator: use --dtype bfloat16 or a smaller model, or hide the "
                "accelerator (CUDA_VISIBLE_DEVICES= for a CPU)."
            ) from error
    return loaded


def revision_of(folder: Path) -> str | None:
    """Revision on the hub of the base of the LoRA in `folder`; None for the default, or without a LoRA."""
    return _adapter_config(folder).get("revision")


def base_of(folder: Path, run: dict[str, Any]) -> tuple[str | None, str]:
    """The model that the one in `folder` was trained from (None if unknown), and where its base's weights are.

    Args:
        run: record of its run, or an empty one.
    """
    base: str | None = run.get("model")
    if adapter := _adapter_config(folder):
        base = adapter.get("base_model_name_or_path") or base
        if base is None:
            raise UserError(f"{folder / LORA_CONFIG}: base_model_name_or_path is missing; add the base model's name.")
        return base, base
    if (folder / serialization.CONFIG_FILE).is_file():
        base = base or serialization.read_config(folder)["base"].get("name_or_path") or None
    return base, str(folder)


def _adapter_config(folder: Path) -> dict[str, Any]:
    file = folder / LORA_CONFIG
    return serialization.read_json(file, "not an adapter's config") if file.is_file() else {}
