"""From a directory or a hub name to a model that answers: a run, a checkpoint of one, a fold, a LoRA, anybody's model.

Nothing remote is executed unless `trust_remote_code` is asked for, and weights are read from safetensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cctuning.errors import UserError
from cctuning.model import adapter
from cctuning.model.connected import ConnectedModel

RUN_FILE = "run.json"
MODEL_FOLDER = "model"


@dataclass
class Loaded:
    """A model ready to run.

    Attributes:
        model: a transformers or PEFT model (the one inside `connected`, where there is one).
        connected: the connected model, or None for a model without a connection.
        tokenizer: of the model.
        run: the record of the training run it came from, if it came from one.
    """

    model: PreTrainedModel
    connected: ConnectedModel | None
    tokenizer: PreTrainedTokenizerBase
    run: dict[str, Any]


def resolve(path: str) -> tuple[str, dict[str, Any]]:
    """Where the weights of `path` are, and the run's record if it is a run directory.

    Raises:
        UserError: a run that has not finished, or a local path that holds no model.
    """
    folder = Path(path)
    record = folder / RUN_FILE
    if record.is_file():
        try:
            run = json.loads(record.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{record}: not valid JSON ({error}); the run directory is damaged.") from error
        if run.get("status") != "finished" or not (folder / MODEL_FOLDER).is_dir():
            raise UserError(
                f"{path}: the run has not finished (status {run.get('status')!r}); continue it with cctuning train "
                "--config … --resume_from_checkpoint true, or name one of its checkpoint-… folders."
            )
        return str(folder / MODEL_FOLDER), run
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{path}: no run.json, config.json or adapter_config.json there; expected a run or a model.")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"{path}: no such directory; expected a run, a model directory, or a hub name like org/name.")
    return path, {}


def load_base(
    name: str,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A causal LM from a directory or the hub.

    Args:
        name: directory or hub name.
        dtype: `auto` (as saved) or a torch dtype's name.
        revision, trust_remote_code, attn_implementation: as in transformers.

    Raises:
        UserError: it cannot be found or is not a causal LM; the message is the library's, on one line.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"dtype: {dtype!r} is not one; expected auto, float32, bfloat16 or float16.")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {name!r}: cannot be loaded: {_first_line(error)}") from error


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`; `UserError` where it has none."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"tokenizer of {name!r}: cannot be loaded: {_first_line(error)}") from error


def load(path: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> Loaded:
    """Load whatever `path` names, with its connection if it has one.

    Raises:
        UserError: nothing that can be loaded is there.
    """
    where, run = resolve(path)
    folder = Path(where)
    lora = folder / "adapter_config.json"
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if lora.is_file():
        base = json.loads(lora.read_text(encoding="utf-8"))["base_model_name_or_path"]
        model: Any = PeftModel.from_pretrained(load_base(base, **options), where)
    else:
        model = load_base(where, **options)
    connected = None
    if (folder / adapter.CONFIG_FILE).is_file():
        connected = ConnectedModel.from_pretrained(model, where)
    tokenizer = load_tokenizer(where, trust_remote_code=trust_remote_code)
    (connected or model).eval()
    return Loaded(model, connected, tokenizer, run)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
