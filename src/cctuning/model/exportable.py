"""Check, before training, what a model can be exported as afterwards.

`check_adapter_start` raises an error for what would be exported wrongly; `obstacles` lists what cannot be exported, by
format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel
from torch import nn

from cctuning.errors import UserError
from cctuning.model.loading import is_quantised
from cctuning.model.lora import HARMLESS_STARTS, check_transforms, check_vocabulary, existing_lora, plain_adapter
from cctuning.model.merge import check_merge
from cctuning.model.runner import several_processes
from cctuning.model.serialization import base_is_trained
from cctuning.model.sites import unwrap

if TYPE_CHECKING:
    from cctuning.model.connected import ConnectedModel


def check_adapter_start(model: nn.Module) -> None:
    """Raise `UserError` for an adapter whose initialisation rewrites the base's weights (PiSSA, OLoRA, CorDA, LoftQ,
    LoRA-GA, KaSA).

    Only the adapter of such a run is saved, and the weights that it belongs to are in no file; not all of these
    initialisations can compute them again.
    """
    for config in getattr(model, "peft_config", {}).values():
        if not isinstance(config, LoraConfig):
            continue
        start = "kasa" if getattr(config, "kasa_config", None) is not None else config.init_lora_weights
        if start not in HARMLESS_STARTS:
            raise UserError(
                f"init_lora_weights: {start!r} rewrites the base's weights, which are not saved with checkpoints and "
                "exports, so neither would be the trained model; use True (the default), 'gaussian', 'orthogonal' or "
                "'eva'."
            )
        saved = config.modules_to_save or []
        tied = getattr(unwrap(model).config.get_text_config(), "tie_word_embeddings", False)
        if config.trainable_token_indices and tied and "lm_head" in saved:  # as TRL has it after chat_template_path
            raise UserError(
                "trainable_token_indices with modules_to_save: lm_head: input and output embedding are one weight in "
                "this model, and PEFT cannot train it in both ways. Where chat_template_path added tokens, use "
                "tune: full, or a template file (.jinja) and the tokens that the model has."
            )


def obstacles(connected: ConnectedModel) -> dict[str, str | None]:
    """Format (`merged`, `lora`) -> why a model that is about to be trained cannot be exported so; None: it can."""
    weights = [*connected.model.parameters()]
    there = all(not p.is_meta and p.numel() and not hasattr(p, "full_tensor") for p in weights)
    exact = there and not is_quantised(connected.model) and not several_processes()
    found: dict[str, str | None] = {}
    for name, check in {
        "merged": lambda: check_merge(connected, exact),
        "lora": lambda: _check_lora(connected),
    }.items():
        try:
            found[name] = None
            check()
        except UserError as error:
            found[name] = str(error)
    return found


def _check_lora(connected: ConnectedModel) -> None:
    transforms, model = check_transforms(connected), connected.model
    if is_quantised(model) and isinstance(model, PeftModel):  # the export is for the base as it was before
        existing: Any = plain_adapter(model)
    else:
        existing = existing_lora(model)
    if base_is_trained(connected):
        raise UserError(
            "tune: full trains the base's own weights, which a LoRA does not carry; export with --format merged."
        )
    check_vocabulary(model, unwrap(model).config.name_or_path)
    if not transforms and not existing:
        raise UserError("there is neither a transform nor a LoRA in this run.")
