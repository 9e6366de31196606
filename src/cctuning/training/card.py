"""Write the model card of a trained model; the card of an export uses its parts too (serving/model_card.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import transformers
import trl
from huggingface_hub import ModelCard, ModelCardData

from cctuning.connection import ConnectionConfig
from cctuning.connection.config import ALIGN_OPTIONS
from cctuning.markdown import table
from cctuning.model.connected import ATTRIBUTE

if TYPE_CHECKING:
    from cctuning.training.saving import SavingTrainer

CITATION = """@inproceedings{cc-tuning-2025,
  title     = {{CC-Tuning}: A Cross-Lingual Connection Mechanism for Improving
               Joint Multilingual Supervised Fine-Tuning},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics (ACL)},
  year      = {2025},
  url       = {https://arxiv.org/abs/2506.00875},
}"""
CITE = f"## Citation\n\nThe method:\n\n```bibtex\n{CITATION}\n```\n"


def hub_name(base: str | None) -> str | None:
    """The base's name if it is one on the hub, not a local path."""
    return base if base and not Path(base).is_absolute() and not Path(base).exists() else None


def describe_method(config: ConnectionConfig, reference_language: str) -> str:
    """The method in a sentence or two."""
    if config.connection == "none":
        return "Plain joint multilingual supervised fine-tuning (no connection)."
    if config.connection == "align":
        return (
            "Fine-tuned with CC-Tuning: in training, hidden states of middle layers were aligned to those of the same "
            f"text in `{reference_language}` ({config.loss} error). Nothing was added to the model, and at inference "
            "no parallel text is needed."
        )
    if config.transform == "none" and config.connection == "gated":
        return (
            "Fine-tuned with CC-Tuning's alignment alone (no transform): in training, activations of each row were "
            f"drawn to those of the same prompt in `{reference_language}`; at inference no such prompt is needed."
        )
    return (
        f"Fine-tuned with CC-Tuning ({config.connection} connection): in training, activations of each row were "
        f"connected to those of the same prompt in `{reference_language}`; at inference no such prompt is needed."
    )


def option_table(config: ConnectionConfig) -> str:
    """The connection's options as a Markdown table."""
    options = config.to_dict()
    if config.connection == "align":
        options = {key: options[key] for key in ("connection", *ALIGN_OPTIONS)}
    return table(["connection option", "value"], options.items())


def write_model_card(trainer: SavingTrainer, path: Path, name: str, dataset: str | None, tags: list[str]) -> None:
    """Write the card of a trained model to `path`; `name` is the model's, `dataset` that of its rows."""
    args, connected, peft = trainer.args, trainer.connected, trainer.is_peft()
    data = ModelCardData(
        base_model=hub_name(connected.model.config.name_or_path),
        library_name="peft" if peft else "transformers",
        tags=tags,
        datasets=[dataset] if dataset else None,
    )
    config = connected.config
    method = describe_method(config, connected.reference_language)
    if not config.plain and config.mergeable:
        method += " The connection is saved beside the base; `cctuning export` merges it into a plain checkpoint."
    trained = any(p.requires_grad for name, p in connected.model.named_parameters() if ATTRIBUTE not in name)
    tuned = "LoRA" if peft else "full weights" if trained else "the connection alone"
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    content = f"""---
{data.to_yaml()}
---

# {name}

{method}

{option_table(config)}

Learning rate {args.learning_rate} (connection x {args.connection_lr_scale}), {length}, batch \
{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}, seed {args.seed}; \
{tuned}.
Transformers {transformers.__version__}, TRL {trl.__version__}.

{CITE}"""
    path.parent.mkdir(parents=True, exist_ok=True)
    ModelCard(content).save(path)
