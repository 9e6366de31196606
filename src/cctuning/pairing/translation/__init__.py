"""Translate with a local sequence-to-sequence model, a chat endpoint or a function of the user's.

`open_translator` opens an engine; `ChatClient` asks a chat endpoint anything else.
"""

from typing import TYPE_CHECKING, Any

from cctuning.pairing.translation.base import Answer, Translator
from cctuning.pairing.translation.translator import open_translator

if TYPE_CHECKING:
    from cctuning.pairing.translation.chat_client import ChatClient

__all__ = ["Answer", "ChatClient", "Translator", "open_translator"]


def __getattr__(name: str) -> Any:
    if name == "ChatClient":  # imports openai
        from cctuning.pairing.translation.chat_client import ChatClient

        return ChatClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
