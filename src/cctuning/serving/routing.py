"""Which of the two answers: the base, prompts in the reference language; the LoRA on it, all others.

A fold has changed the weights for every prompt, English ones too, and costs English a little. A LoRA need not: where
one server holds the base and the adapter, each request names the one it wants, and English can have the base as it
was. What stands here runs beside the client and changes no server.

    router = Router.from_export("adapters/sw", base="Qwen/Qwen2.5-7B-Instruct", adapter="sw")
    client.chat.completions.create(model=router.model(prompt), messages=…)     # vLLM, or any server of both
    model.generate(**inputs, adapter_names=router.adapter_names(prompts))      # PEFT, a mixed batch

A prompt whose language nobody names is shown to lingua, against the languages trained in and the widespread ones of
the same script. In doubt it goes to the adapter: a prompt in Swahili that misses its adapter loses all of the
fine-tuning, one in English that meets it loses little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from cctuning import identify
from cctuning.errors import UserError
from cctuning.languages import base as language_of
from cctuning.languages import canonical, is_code
from cctuning.serving.manifest import EXPORT_FILE, read_manifest

if TYPE_CHECKING:
    from lingua import Language, LanguageDetector

Prompt = str | Sequence[dict[str, Any]]
PEFT_BASE = "__base__"  # what PEFT calls no adapter, in a batch


class Router:
    """Sends prompts in the reference language to the base and the others to the adapter.

    Attributes:
        reference_language: the language that training borrowed from.
        base, adapter: their names in a server's requests.
        languages: those the adapter was trained in; only detection looks at them.
        sure: confidence of the detection in the reference language from which a prompt goes to the base.
    """

    def __init__(
        self, reference_language: str, *, base: str, adapter: str, languages: Sequence[str] = (), sure: float = 0.5
    ) -> None:
        if not 0 < sure < 1:
            raise UserError(f"sure: expected a confidence between 0 and 1, got {sure}.")
        self.reference_language = canonical(reference_language)
        self.base, self.adapter, self.sure = base, adapter, sure
        self.languages = [canonical(code) for code in languages if is_code(code)]

    @classmethod
    def from_export(
        cls, directory: str | Path, *, base: str | None = None, adapter: str | None = None, sure: float = 0.5
    ) -> Router:
        """The router of a LoRA that `cctuning export` wrote.

        Args:
            base: the base's name on the server; default: the one that the export gives.
            adapter: the adapter's (vLLM: NAME of `--lora-modules NAME=DIR`); default: the directory's.

        Raises:
            UserError: no export of a LoRA is there, or it does not name its base and `base` is not given.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if manifest.kind != "lora":
            raise UserError(
                f"{directory}: its format is {manifest.kind}; only a LoRA leaves the base as it is. Use --format lora."
            )
        if base is None and manifest.base is None:
            raise UserError(f"{directory / EXPORT_FILE}: names no base; give `base`, its name on the server.")
        return cls(
            manifest.reference_language,
            base=base or str(manifest.base),
            adapter=adapter or directory.resolve().name,
            languages=manifest.languages,
            sure=sure,
        )

    def is_reference(self, prompt: Prompt, lang: str | None = None) -> bool:
        """Whether a prompt is in the reference language, region and script aside.

        Args:
            prompt: text, or messages, of which the user's last counts.
            lang: its language, where the caller knows; else it is detected.
        """
        if lang and lang != "und":
            return language_of(canonical(lang, "lang")) == language_of(self.reference_language)
        text = identify.prose(prompt if isinstance(prompt, str) else _last(prompt))
        detector, reference = self._detector
        return detector.compute_language_confidence(text, reference) >= self.sure

    def model(self, prompt: Prompt, lang: str | None = None) -> str:
        """The model that an OpenAI-style request should name; arguments as of `is_reference`."""
        return self.base if self.is_reference(prompt, lang) else self.adapter

    def adapter_names(
        self, prompts: Sequence[Prompt], langs: Sequence[str | None] | None = None, adapter: str = "default"
    ) -> list[str]:
        """PEFT's `adapter_names` for a batch of `generate` or `forward`.

        Args:
            langs: the prompts' languages, where the caller knows them.
            adapter: the LoRA's name in the PEFT model.
        """
        told = langs if langs is not None else [None] * len(prompts)
        pairs = zip(prompts, told, strict=True)
        return [PEFT_BASE if self.is_reference(prompt, lang) else adapter for prompt, lang in pairs]

    @contextmanager
    def on(self, model: PeftModel, prompt: Prompt, lang: str | None = None) -> Iterator[PeftModel]:
        """Within: `model` answers `prompt` with the adapter, or, in the reference language, without it."""
        with model.disable_adapter() if self.is_reference(prompt, lang) else nullcontext():
            yield model

    @cached_property
    def _detector(self) -> tuple[LanguageDetector, Language]:
        """lingua's detector, made when first asked for, and the reference language as lingua has it."""
        lingua = identify.lingua()
        reference = identify.lingua_language(self.reference_language)
        if reference is None:
            raise UserError(
                f"reference_language {self.reference_language!r}: lingua has no model of it, so prompts cannot be "
                "told apart by themselves; give each prompt's `lang`."
            )
        scripts = set(identify.expected_scripts(self.reference_language))
        alike = [name for name in identify.WIDESPREAD.split() if scripts & set(identify.expected_scripts(name))]
        known = {reference, *map(identify.lingua_language, self.languages), *map(identify.lingua_language, alike)}
        chosen = {language for language in known if language is not None}
        chosen |= {lingua.Language.ENGLISH, lingua.Language.FRENCH} if len(chosen) == 1 else set()  # lingua wants two
        return lingua.LanguageDetectorBuilder.from_languages(*sorted(chosen, key=str)).build(), reference


def _last(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the user's last message; of one in parts (images among them), the parts that are text."""
    said = [message.get("content") for message in messages if message.get("role") == "user"]
    if not said:
        raise UserError("messages: no message of the user's among them; give one, or the prompt's `lang`.")
    content = said[-1]
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content or [] if isinstance(part, dict))
