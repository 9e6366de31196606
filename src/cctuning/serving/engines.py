"""What other engines need of an export: a manifest, a check for vLLM, and a Modelfile for Ollama and llama.cpp.

Sources: for what vLLM accepts of an adapter, its vllm/config/lora.py (as of 0.27), vllm/lora/peft_helper.py and
vllm/lora/utils.py (whether it supports LoRA on a family of models is not checked); for how Ollama renders a prompt,
template/template.go, and for what it imports, docs/import.mdx.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from cctuning import __version__
from cctuning.data import Encoder
from cctuning.data.chat import render
from cctuning.errors import UserError
from cctuning.files import write_json
from cctuning.markdown import templates
from cctuning.training.card import hub_name

TEMPLATES = templates(Path(__file__).parent)
GO = TEMPLATES.overlay("<%", "%>", "<<", ">>")  # Go templates use braces themselves
GO.filters |= {"go": lambda text: json.dumps(text, ensure_ascii=False)}  # a string literal of Go, as JSON writes it
EXPORT_FILE = "cctuning_export.json"  # the manifest
FORMAT = 1
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank; an adapter may have any rank up to it
MODELFILE = "Modelfile"
SAMPLING = ("temperature", "top_k", "top_p", "min_p")  # parameters of Ollama that generation configs have too


@dataclass(frozen=True)
class Manifest:
    """What an export is."""

    kind: str  # `merged` (`fold` in older exports) or `lora`
    base: str | None  # name or path for a LoRA, else the name on the hub; None where not known
    reference_language: str  # of training
    languages: list[str] = field(default_factory=list)  # the others of training, most rows first; empty if not known
    chat: bool = False  # prompts are rendered with the chat template in the directory
    stop_token_ids: list[int] = field(default_factory=list)  # EOS tokens, as in generation_config.json
    stop: str | None = None  # stop string, where the template ends a turn with ordinary text

    def write(self, directory: Path) -> None:
        record: dict[str, Any] = {"format": FORMAT, "made_by": f"cc-tuning {__version__}", **asdict(self)}
        write_json(directory / EXPORT_FILE, record)


def check_vllm(directory: Path) -> str:
    """Whether vLLM loads an exported LoRA, by its config: `vLLM: supported …`, or why it does not."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    unsupported = {
        "modules_to_save": "it contains whole modules (modules_to_save)",
        "trainable_token_indices": "it contains trained tokens (trainable_token_indices)",
        "use_dora": "it is a DoRA",
        "lora_bias": "it has biases (lora_bias), because the base's projections have; use --format merged",
    }
    problems = [problem for key, problem in unsupported.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"biases of the base were trained (bias: {config['bias']})")
    if config["peft_type"] != "LORA":
        return f"vLLM: not supported: it is no LoRA ({config['peft_type']})"
    rank = max(config["r"], *(config.get("rank_pattern") or {"": 0}).values())
    allowed = next((one for one in RANKS if rank <= one), None)
    if allowed is None:
        problems.append(f"its rank is {rank}, above the maximum of {RANKS[-1]}; use --format merged")
    if problems:
        return f"vLLM: not supported: {'; '.join(problems)}"
    return f"vLLM: supported (--enable-lora --max-lora-rank {allowed}); checked from the files"


def modelfile(manifest: Manifest, encoder: Encoder, generation: GenerationConfig) -> str:
    """The Modelfile of an export: where Ollama finds the weights, the prompt template, stop strings and sampling.

    Without sampling in the generation config Ollama decodes greedily, as `cctuning generate` does.
    """
    stops = [str(encoder.tokenizer.decode([token])) for token in manifest.stop_token_ids]
    sampling: dict[str, Any] = {"temperature": 0}
    if generation.do_sample:
        sampling = {name: getattr(generation, name) for name in SAMPLING}
    sampling["repeat_penalty"] = generation.repetition_penalty or 1.0  # 1.1 in older versions of Ollama
    return TEMPLATES.get_template("Modelfile.jinja").render(
        lora=manifest.kind == "lora",
        base=hub_name(manifest.base) or "BASE",
        template=go_template(encoder) if manifest.chat else "{{ .Prompt }}",
        stops=dict.fromkeys([*stops, *([manifest.stop] if manifest.stop else [])]),
        sampling=sampling,
    )


def go_template(encoder: Encoder) -> str | None:
    """The chat template in Ollama's language (Go templates over `.Messages`), from what it writes around messages.

    Returns:
        None where a conversation is more than fixed texts around each message. Tools are not rendered, and a date that
        the template writes is that of today.
    """
    system, *turns = [f"CCTUNING{number}MESSAGE" for number in range(6)]

    def around(*contents: str) -> list[str]:
        """The texts before, between and after messages of a conversation that the assistant answers next."""
        roles = ["system"] * (contents[0] == system) + ["user", "assistant"] * 3
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
        text = render(encoder.tokenizer, messages, encoder.chat_template, prompt=True)
        parts = re.split("|".join(contents), text)
        if re.findall("|".join(contents), text) != list(contents):
            raise UserError("the template changes, moves or leaves out a message.")
        return parts

    try:
        start, answer, turn, asked = around(*turns[:3])  # user, assistant, user
        if around(*turns[:1]) != [start, asked] or around(*turns[:5]) != [start, *[answer, turn] * 2, asked]:
            return None
    except UserError:
        return None
    values: dict[str, Any] = {"opening": _without_bos(start, encoder), "answer": answer, "turn": turn, "asked": asked}
    values |= {"system": None, "after": None}
    with suppress(UserError):  # a template without system messages (Gemma): they are left out
        first, after, system_asked = around(system, turns[0])
        if system_asked == asked and around(system, *turns[:3]) == [first, after, answer, turn, asked]:
            values |= {"system": _without_bos(first, encoder), "after": after}
    return GO.get_template("ollama_template.jinja").render(values).rstrip("\n")


def _without_bos(text: str, encoder: Encoder) -> str:
    """A prompt's beginning without the BOS token where the engine adds it, as the tokenizer does to plain text."""
    tokenizer = encoder.tokenizer
    adds = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(str(tokenizer.bos_token)) if adds else text
