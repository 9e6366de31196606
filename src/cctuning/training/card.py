"""The model card that training writes: what was done, with which options, and whom to cite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
import trl
from huggingface_hub import ModelCard, ModelCardData

from cctuning.model.connected import ConnectedModel

CITATION = """@inproceedings{cc-tuning-2025,
  title     = {{CC-Tuning}: A Cross-Lingual Connection Mechanism for Improving
               Joint Multilingual Supervised Fine-Tuning},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics (ACL)},
  year      = {2025},
  url       = {https://arxiv.org/abs/2506.00875},
}"""


def write_model_card(
    path: Path,
    connected: ConnectedModel,
    *,
    model_name: str,
    dataset_name: str | None,
    tags: list[str],
    args: Any,
    peft: bool,
) -> None:
    """Write the card to `path`.

    Args:
        connected: the model and its connection.
        model_name, dataset_name: as a reader should see them; the data set may be unknown.
        tags: hub tags.
        args: the training options.
        peft: whether the base was trained through PEFT.
    """
    base = connected.model.config.name_or_path
    on_hub = base and not Path(base).exists()  # a path of the machine it was trained on means nothing to a reader
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="peft" if peft else "transformers",
        tags=tags,
        datasets=[dataset_name] if dataset_name else None,
    )
    config = connected.config
    if config.connection == "none":
        method = "Plain joint multilingual supervised fine-tuning (no connection)."
    else:
        method = (
            f"Fine-tuned with CC-Tuning ({config.connection} connection): in training, activations of each row were "
            f"connected to those of the same prompt in `{connected.reference_language}`; at inference no such prompt "
            "is needed."
        )
    if config.connection != "none" and config.foldable:
        method += " The connection is saved beside the base; `cctuning export` folds it into a plain checkpoint."
    options = "\n".join(f"| {key} | {value} |" for key, value in config.to_dict().items())
    content = f"""---
{data.to_yaml()}
---

# {model_name}

{method}

| connection option | value |
| --- | --- |
{options}

Learning rate {args.learning_rate} (connection x {args.connection_lr_scale}), {args.num_train_epochs} epochs, batch \
{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}, seed {args.seed}; \
{"LoRA" if peft else "full weights"}.
Transformers {transformers.__version__}, TRL {trl.__version__}.

## Citation

The method:

```bibtex
{CITATION}
```
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    ModelCard(content).save(path)
