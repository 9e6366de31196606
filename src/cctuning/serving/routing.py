"""Route prompts in the reference language to the base model, and all others to the LoRA.

A merged checkpoint has one set of weights for all prompts. A server with base and adapter takes the choice from each
request, so that the reference language can keep the unchanged base. The router runs in the client.

    router = Router("en", base="Qwen/Qwen2.5-7B-Instruct", adapter="sw", languages=["sw"])
    client.chat.completions.create(model=router.model(prompt), messages=…)     # vLLM, or any server of both

Where the caller does not give a prompt's language, lingua detects it among the languages of training and widespread
languages of the same script. In doubt the adapter answers: a Swahili prompt without its adapter loses the fine-tuning,
an English prompt with it loses little.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cctuning import identify
from cctuning.errors import UserError
from cctuning.languages import base as language_of
from cctuning.languages import canonical, is_code

if TYPE_CHECKING:
    from lingua import Language, LanguageDetector

Prompt = str | Sequence[dict[str, Any]]


class Router:
    """Chooses between base and adapter by the language of a prompt.

    Args:
        reference_language: of training.
        base, adapter: their model names in requests to the server.
        languages: of the adapter's training, for the detection.
        sure: confidence in the reference language from which a prompt goes to the base.
    """

    def __init__(
        self, reference_language: str, *, base: str, adapter: str, languages: Sequence[str] = (), sure: float = 0.5
    ) -> None:
        if not 0 < sure < 1:
            raise UserError(f"sure: expected a confidence between 0 and 1, got {sure}.")
        self.reference_language = canonical(reference_language)
        self.base, self.adapter, self.sure = base, adapter, sure
        self.languages = [canonical(code) for code in languages if is_code(code)]

    def is_reference(self, prompt: Prompt, lang: str | None = None) -> bool:
        """Whether a prompt (of messages, the user's last one) is in the reference language, whatever its region and
        script. `lang` is its language; None: it is detected."""
        if lang and lang != "und":
            return language_of(canonical(lang, "lang")) == language_of(self.reference_language)
        text = identify.prose(prompt if isinstance(prompt, str) else _last(prompt))
        detector, reference = self._detector
        return detector.compute_language_confidence(text, reference) >= self.sure

    def model(self, prompt: Prompt, lang: str | None = None) -> str:
        """The `model` of an OpenAI-style request; arguments as of `is_reference`."""
        return self.base if self.is_reference(prompt, lang) else self.adapter

    @cached_property
    def _detector(self) -> tuple[LanguageDetector, Language]:
        """lingua's detector, and the reference language in lingua."""
        lingua = identify.lingua()
        reference = identify.lingua_language(self.reference_language)
        if reference is None:
            raise UserError(
                f"reference_language {self.reference_language!r}: lingua cannot detect it; give the "
                "`lang` of each prompt."
            )
        scripts = set(identify.expected_scripts(self.reference_language))
        alike = [name for name in identify.WIDESPREAD.split() if scripts & set(identify.expected_scripts(name))]
        known = {reference, *map(identify.lingua_language, self.languages), *map(identify.lingua_language, alike)}
        chosen = {language for language in known if language is not None}
        chosen |= {lingua.Language.ENGLISH, lingua.Language.FRENCH} if len(chosen) == 1 else set()  # lingua needs two
        return lingua.LanguageDetectorBuilder.from_languages(*sorted(chosen, key=str)).build(), reference


def _last(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the user's last message; of a message in parts, those that are text."""
    said = [message.get("content") for message in messages if message.get("role") == "user"]
    if not said:
        raise UserError("messages: none is the user's; add one, or give the prompt's `lang`.")
    content = said[-1]
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content or [] if isinstance(part, dict))
