"""Translate with a local sequence-to-sequence model, a chat endpoint or a function of the user's."""

from cctuning.pairing.translation.translator import Answer, Translator, open_translator

__all__ = ["Answer", "Translator", "open_translator"]
