"""Translation with real engines: a local sequence-to-sequence model, a chat endpoint, or a function of the user's.

`open_translator` is the way in; `ChatClient` serves whatever else asks a chat endpoint.
"""

from cctuning.pairing.translation.base import Answer, Translated, Translator
from cctuning.pairing.translation.client import ChatClient
from cctuning.pairing.translation.translator import open_translator

__all__ = ["Answer", "ChatClient", "Translated", "Translator", "open_translator"]
