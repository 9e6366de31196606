"""Protect code, mathematics, links, placeholders and tags from translation.

`find` finds them in the source text. Code blocks are never sent to the engine. Spans inside a sentence are replaced by
numbered markers (`mask`), so that the engine sees a whole sentence, and put back afterwards (`restore`). A translation
with a missing, repeated or invented marker is not used; the caller translates the text between the spans instead.

Text that looks like a marker is protected too, so every marker in a masked text was put there by `mask`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cctuning.data.text import UNSPACED
from cctuning.pairing.translation.segments import Span

# with another backtick in the line it is inline code, as in CommonMark
_FENCE = r"^[ \t]*(?P<fence>`{3,}(?![^\n]*`)|~{3,})[^\n]*(?:\n(?:.*?\n)??[ \t]*(?P=fence)[`~]*[ \t]*$|.*)"
# no white space, quotes or brackets; no Korean, full-width or unspaced scripts, which may follow without a space
_ADDRESS = rf"[^\s<>\"“”‘’«»`{UNSPACED}\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]"
_LATIN = r"0-9A-Za-z_\u00c0-\u024f"  # in mail addresses: `\w` would take the words around one in other scripts
_INLINE = (
    r"(?P<tick>(?<!`)`+(?!`))[^\n]+?(?<!`)(?P=tick)(?!`)",  # `code`
    r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]",  # mathematics; a single $ is too often a price
    rf"(?<![A-Za-z0-9])(?:(?:https?|ftp)://|www\.){_ADDRESS}+",
    rf"[{_LATIN}.+-]+@[{_LATIN}-]+(?:\.[{_LATIN}-]+)+",
    r"\$\{[^{}\n]*\}|\{\{[^{}\n]*\}\}|\{[A-Za-z_][\w.\[\]]*(?:![rsa])?(?::[^{}\n]*)?\}|\{\d*\}",  # ${x} {{x}} {x} {0}
    r"%\(\w+\)[-#0 +]*\d*(?:\.\d+)?[sdifrxeg]|%(?:\d+\$)?[-#0+]*\d*(?:\.\d+)?[sdifrxeg](?![A-Za-z])",  # %(x)s %s %1$s
    r"<\|[^|<>\s]+\|>|</?[A-Za-z][^<>\n]*>|<!--.*?-->",  # <|end|> <tag a="b">
    r"&(?:[A-Za-z]+|#\d+|#x[0-9A-Fa-f]+);",  # &nbsp;
    r"\[\[\d+\]\]",  # what looks like a marker
)
_PROTECTED = re.compile(rf"(?P<block>{_FENCE})|" + "|".join(_INLINE), re.MULTILINE | re.DOTALL)
_ADDRESS_START = re.compile(r"(?:https?|ftp)://|www\.")
# Punctuation after an address. A closing bracket belongs to the address if it was opened there.
_TRAILING = ".,;:!?'*_।॥،؟؛۔።།։…"

# Engines put spaces into markers and use wide brackets or digits of another script, which `\d` matches.
_MARKER = re.compile(r"[\[［【]\s*[\[［【]\s*(\d+)\s*[\]］】]\s*[\]］】]")


def find(text: str) -> tuple[list[Span], list[Span]]:
    """The protected spans of a text inside sentences, and its protected blocks, each sorted and disjoint."""
    spans: list[Span] = []
    blocks: list[Span] = []
    at = 0
    while match := _PROTECTED.search(text, at):
        start, end = match.span()
        if _ADDRESS_START.match(match[0]):
            end = start + len(_trimmed(match[0]))
        (blocks if match["block"] else spans).append((start, end))
        at = end
    return spans, blocks


def _trimmed(address: str) -> str:
    """An address without the punctuation after it."""
    opened = {")": "(", "]": "[", "}": "{"}
    while (last := address[-1]) in _TRAILING or (last in opened and address.count(last) > address.count(opened[last])):
        address = address[:-1]
    return address


def mask(text: str, spans: Sequence[Span]) -> tuple[str, list[str]]:
    """The text with `[[0]]`, `[[1]]`, … in place of protected spans, and the spans' texts."""
    parts, kept, at = [], [], 0
    for number, (start, end) in enumerate(spans):
        parts += [text[at:start], f"[[{number}]]"]
        kept.append(text[start:end])
        at = end
    return "".join([*parts, text[at:]]), kept


def restore(translation: str, kept: Sequence[str]) -> str | None:
    """Replace markers by their texts; None unless each marker is there exactly once, and no other."""
    if sorted(int(number) for number in _MARKER.findall(translation)) != list(range(len(kept))):
        return None
    return _MARKER.sub(lambda match: kept[int(match[1])], translation)
