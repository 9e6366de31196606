"""Load rows and model, and set up the trainer of a run."""

from __future__ import annotations

import math
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations import is_fsdp_enabled

from cctuning.connection import ConnectionConfig
from cctuning.data import LoadReport, load_parallel, load_rows
from cctuning.errors import UserError
from cctuning.model.loading import RUN_FILE, load_base, load_tokenizer
from cctuning.model.lora import obstacles
from cctuning.model.serialization import CONFIG_FILE, LORA_CONFIG
from cctuning.model.sites import is_quantised
from cctuning.training.callbacks import SAMPLES_FILE, SampleAnswers
from cctuning.training.config import CCConfig
from cctuning.training.directory import METRICS_FILE, MetricsFile, failed_write
from cctuning.training.options import RunOptions
from cctuning.training.saving import weights
from cctuning.training.summary import unforeseen
from cctuning.training.trainer import CCTrainer

PACKAGES = ("cc-tuning", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def prepare(
    options: RunOptions, connection: ConnectionConfig, args: CCConfig, directory: Path
) -> tuple[CCTrainer, dict[str, Any]]:
    """The trainer, and the record for run.json."""
    notes = [f"{', '.join(args.not_here)}: off, because there is no accelerator."] if args.not_here else []
    reading: Any = {"reference_language": args.reference_language, "seed": args.seed, "bad_rows": args.bad_rows}
    connects = connection.connection != "none"
    rows = eval_rows = pairs = report = eval_report = pairs_report = None
    if options.data:
        rows, report = load_rows(options.data, require_reference=connects and not options.parallel, **reading)
    if options.eval_data:
        eval_rows, eval_report = load_rows(options.eval_data, require_reference=False, **reading)
    if options.parallel and connects:
        pairs, pairs_report = load_parallel(options.parallel, **reading)
    reports = [found for found in (report, eval_report, pairs_report) if found is not None]
    notes += [note for found in reports for note in found.notes]
    tokenizer = load_tokenizer(
        options.tokenizer or options.model, revision=options.revision, trust_remote_code=args.trust_remote_code
    )
    model = load_model(options, args)
    if options.tune == "connection":
        model.requires_grad_(False)
    try:
        trainer = CCTrainer(
            model=model,
            args=args,
            connection_config=connection,
            train_dataset=rows,
            parallel_dataset=pairs,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            peft_config=options.lora(options.revision) if options.tune == "lora" else None,
            callbacks=[MetricsFile(directory / METRICS_FILE)],
        )
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # TRL's, PEFT's and report_to's
        if (full := failed_write(error)) is not None:
            raise UserError(
                f"the tokenised rows cannot be written to the cache ({full}): free some space, or set "
                "HF_DATASETS_CACHE and TMPDIR to other places."
            ) from error
        raise UserError(f"options: {error}") from error
    notes += trainer.notes
    trainer.notes = []  # printed after the summary
    whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)  # one process cannot generate from a shard
    if eval_rows is not None and args.eval_samples and whole and connection.connection != "adaptive":
        trainer.add_callback(SampleAnswers(trainer, directory / SAMPLES_FILE, args.eval_samples))
    can = obstacles(trainer.connected)
    notes += unforeseen(can, options.tune)
    settled = trainer.connected.config
    moved = connection.reference_weights is None and settled.reference_weights == "current"
    if moved and settled.connection in ("align", "gated"):
        notes.append("reference_weights: current, because the references are not recorded")
    left_out = sum(source.skipped for found in reports for source in found.sources) + len(trainer.skipped)
    if left_out:
        notes.append(f"rows left out (bad_rows: skip): {left_out}; {RUN_FILE} lists them.")
    record = {
        "status": "running",
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": sys.version.split()[0], "platform": platform.platform()},
        "seed": args.seed,
        "model": options.model,
        "reference_language": args.reference_language,
        "data": (report or LoadReport(args.reference_language)).as_dict(),
        "parallel": pairs_report.as_dict() if pairs_report else None,
        "eval_data": eval_report.as_dict() if eval_report else None,
        "skipped_in_tokenisation": [f"{origin}: {reason}" for origin, reason in trainer.skipped],
        "chat": trainer.chat,
        "chat_template_kwargs": args.chat_template_kwargs,
        "thinking": trainer.settled is not None and trainer.settled.thinks,
        "exports": can,
        "notes": notes,
    }
    return trainer, record


def load_model(options: RunOptions, args: CCConfig) -> PreTrainedModel:
    """The base model; without its weights in processes that get their shards of them from the first one."""
    beside = {CONFIG_FILE: "a connection beside its weights", LORA_CONFIG: "a LoRA and not the weights of a model"}
    for file, what in beside.items():
        if (Path(options.model).expanduser() / file).is_file():
            raise UserError(
                f"model: {options.model} has {what}, so training would start without it: merge it first (cctuning "
                "export RUN --format merged --output DIR) and name DIR, or name its base."
            )
    loading: dict[str, Any] = {
        "dtype": options.dtype,
        "revision": options.revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": options.attn_implementation,
        "quantisation": options.quantisation(options.dtype),
    }
    if not is_fsdp_enabled() or loading["quantisation"] is not None:
        return load_base(options.model, **loading)
    model = load_base(options.model, **loading) if torch.distributed.get_rank() == 0 else None
    config = [None if model is None or is_quantised(model) or model.is_remote_code() else model.config]
    torch.distributed.broadcast_object_list(config)
    if model is not None:
        return model
    if config[0] is None:
        return load_base(options.model, **loading)
    return without_weights(options.model, config[0])


def without_weights(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """A model with buffers but without weights, for `fsdp_cpu_ram_efficient_loading`: accelerate distributes those of
    the first process when it shards the model.

    transformers 5.23 loads the weights in every process. A weight here is one NaN, expanded to its shape: with meta
    tensors accelerate could not map the optimizer to the sharded parameters, and PEFT would put a LoRA on meta too.
    """
    options = {"dtype": config.dtype, "attn_implementation": config._attn_implementation}
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(config, **options)
    state = {
        key: torch.full((), math.nan if like.is_floating_point() else 0, dtype=like.dtype).expand(like.shape)
        for key, like in weights(skeleton)
    }
    model: PreTrainedModel = type(skeleton).from_pretrained(None, config=config, state_dict=state, **options)
    model.name_or_path = model.config.name_or_path = name
    return model
