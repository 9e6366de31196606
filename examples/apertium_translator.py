"""Translate with Apertium, a free rule-based system that needs no GPU and no network.

    apt-get install apertium apertium-eng-spa          # one package for each pair of languages
    PYTHONPATH=examples cctuning pair spanish.jsonl --lang es \\
        --translate function function=apertium_translator:translate --output data/es

`spanish.jsonl` holds texts without answers, {"prompt": "..."}; the output is parallel text for `--parallel`.
Rule-based translations are rough ("Hello, what such?"). Debian has pairs of English with Basque, Bosnian, Catalan,
Croatian, Esperanto, Galician, Icelandic, Macedonian, Serbian and Spanish.
"""

from __future__ import annotations

import subprocess

MODES = {"es": "spa", "ca": "cat", "is": "isl", "mk": "mkd", "sr": "hbs", "hr": "hbs", "bs": "hbs", "en": "eng"}
OLD = {"eo": "eo", "eu": "eu", "gl": "gl"}  # pairs that still carry two-letter names


def translate(texts: list[str], source: str, target: str) -> list[str]:
    """The texts in the target language, one for each; Apertium reads them one a line."""
    names = {**OLD, "en": "en"} if {source, target} & OLD.keys() else MODES
    mode = f"{names[source]}-{names[target]}"
    lines = "\n".join(" ".join(text.split()) for text in texts)
    done = subprocess.run(["apertium", "-u", mode], input=lines, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n").split("\n")
