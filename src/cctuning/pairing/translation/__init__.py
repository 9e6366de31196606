"""Translate with a local sequence-to-sequence model, a chat endpoint or a function of the user's.

`open_translator` opens an engine; `chat_client.ChatClient` asks a chat endpoint anything else.
"""

from cctuning.pairing.translation.base import Answer
from cctuning.pairing.translation.translator import Translator, open_translator

__all__ = ["Answer", "Translator", "open_translator"]
