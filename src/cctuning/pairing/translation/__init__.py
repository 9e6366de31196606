"""Translate with a local sequence-to-sequence model, a chat endpoint or a function of the user's."""

from cctuning.pairing.translation.base import Answer
from cctuning.pairing.translation.translator import Translator, open_translator

__all__ = ["Answer", "Translator", "open_translator"]
