"""Split texts into pieces that are translated and pieces that are kept.

The texts of the pieces joined give the text again, character for character. A piece to be translated has a letter and
no white space at its ends; white space, line breaks, list marks, heading marks and code are kept. When split at
sentences, no engine sees a line break, so line structure is preserved.

Sentences end at the punctuation of their script. Text in scripts without it (Thai, Lao) is split at line breaks, and
at spaces where a piece would be too long. Splitting too rarely costs little, splitting inside a sentence gives a wrong
translation: a full stop that may belong to an abbreviation is not a split point.

Code, mathematics, links, placeholders and tags are protected from translation. Code blocks are never sent to the
engine. Spans inside a sentence are replaced by numbered markers (`mask`), so that the engine sees a whole sentence,
and put back afterwards (`restore`). Text that looks like a marker is protected too.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cctuning.data.text import UNSPACED

Span = tuple[int, int]  # start and end in a text, end not included

# mark of a list, heading or quotation at the start of a line, with the white space around it
_MARKS = r"[-*+•‣◦·–]|\(?\d{1,3}[.)]|\d{1,3}、|\(?[A-Za-z][.)]|#{1,6}|>"
LINE_MARK = re.compile(rf"[ \t]*(?:(?:{_MARKS})(?:[ \t]+|(?<=、)))+")
_CLOSERS = r"[\"'”’»）)\]」』】*_]*"
_END = re.compile(
    # Chinese and Japanese, without a space after a sentence
    rf"[。！？｡]+{_CLOSERS}\s*"
    # danda, Arabic and Urdu, Ethiopic, Khmer, Burmese, Armenian, Tibetan: marks with no other use
    rf"|[\u0964\u0965\u061f\u06d4\u1362\u17d4\u17d5\u104b\u0589\u0f0d]+{_CLOSERS}\s*"
    # marks with other uses: only before white space
    rf"|[.!?…‽]+{_CLOSERS}\s+"
)
# before a full stop that does not end a sentence: titles, "e.g.", single letters ("J. Smith", "z. B.")
_ABBREVIATION = re.compile(
    r"(?:^|[^\w])(?:[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Sr|Jr|vs|etc|e\.g|i\.e|cf|No|Nr|Fig|Vol|pp|bzw|Sra?|Dra|Mme|Mlle|"
    r"тыс|млн|руб|стр|рис|им|ул)$",
    re.IGNORECASE,
)
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
_SPACE = re.compile(r"\s+")
_BREAK = re.compile(r"\s*\n\s*")


class Piece(NamedTuple):
    """A part of a text. `kept`: not translated. `spans`: protected spans, counted from its start."""

    text: str
    kept: bool
    spans: tuple[Span, ...] = ()


def split(
    text: str, max_chars: int, sentences: bool, spans: Sequence[Span] = (), blocks: Sequence[Span] = ()
) -> list[Piece]:
    """Split `text` into pieces; `"".join(piece.text for piece in split(text, …)) == text`.

    Args:
        max_chars: longest piece that is translated, except where a protected span is longer.
        sentences: split at every line and sentence; otherwise only what is longer than `max_chars`, at the last line
            break, sentence end or space that fits, in this order.
        spans: protected spans inside sentences, sorted and disjoint; never split.
        blocks: protected blocks (code), sorted, disjoint from each other and from `spans`; kept whole.
    """
    pieces: list[Piece] = []
    at = 0
    for start, end in [*blocks, (len(text), len(text))]:
        inside = [span for span in spans if at <= span[0] < start]
        cuts = {at, start}
        if sentences:
            cuts |= {*_free(_BREAK.finditer(text, at, start), inside), *_ends(text, at, start, inside)}
        for low, high in itertools.pairwise(sorted(cuts)):
            while low < high:
                stop = high if high - low <= max_chars else _best_cut(text, low, high, max_chars, inside)
                pieces += _pieces(text, low, stop, inside)
                low = stop
        if end > start:
            pieces.append(Piece(text[start:end], True))
        at = end
    return pieces


def _free(matches: Iterable[re.Match[str]], spans: list[Span]) -> list[int]:
    """The ends of matches outside protected spans."""
    starts = [span[0] for span in spans]
    ends = []
    for match in matches:
        before = bisect_left(starts, match.end()) - 1  # the last span that begins before this end
        if before < 0 or spans[before][1] <= match.end():
            ends.append(match.end())
    return ends


def _ends(text: str, start: int, end: int, spans: list[Span]) -> list[int]:
    """The ends of sentences in text[start:end], after closing quotes and white space."""
    matches = []
    for match in _END.finditer(text, start, end):
        if match[0][0] == ".":
            following = text[match.end() : match.end() + 1]
            if following.islower() or _ABBREVIATION.search(text, max(start, match.start() - 8), match.start()):
                continue
        matches.append(match)
    return _free(matches, spans)


def _best_cut(text: str, low: int, high: int, max_chars: int, spans: list[Span]) -> int:
    """Where to split text[low:high], which is too long: at the last line break, sentence end or space that fits."""
    limit = low + max_chars
    for kind in (_BREAK, None, _SPACE):
        found = _ends(text, low, high, spans) if kind is None else _free(kind.finditer(text, low, high), spans)
        # A split in the first quarter leaves a tiny piece; a lesser kind of break further on is better.
        fitting = [cut for cut in found if low + max_chars // 4 < cut <= limit]
        if fitting:
            return fitting[-1]
    for start, end in spans:
        if start < limit < end:
            return start if start > low else min(end, high)
    return limit


def _pieces(text: str, low: int, high: int, spans: list[Span]) -> list[Piece]:
    """text[low:high] as up to three pieces: marks and white space, the text, white space."""
    start = low
    if not text[text.rfind("\n", 0, low) + 1 : low].strip(" \t"):  # at the start of a line
        start = _skipped(text, start, high)
        mark = LINE_MARK.match(text, start, high)
        if mark and not any(first < mark.end() for first, last in spans if last > start):
            start = mark.end()
    start = _skipped(text, start, high)
    end = start + len(text[start:high].rstrip())
    inner = [(first, last) for first, last in spans if start <= first and last <= end]
    outside = [text[one:other] for (_, one), (other, _) in itertools.pairwise([(0, start), *inner, (end, 0)])]
    if not any(character.isalpha() for part in outside for character in part):
        start = end = high
    moved = tuple((first - start, last - start) for first, last in inner)
    parts = Piece(text[low:start], True), Piece(text[start:end], False, moved), Piece(text[end:high], True)
    return [piece for piece in parts if piece.text]


def _skipped(text: str, start: int, end: int) -> int:
    """The first place from `start` on that is not white space."""
    return end - len(text[start:end].lstrip())


def line_marks(text: str) -> list[str]:
    """The list mark of each non-blank line, to check that a translation kept them."""
    marks = []
    for line in text.splitlines():
        if line.strip():
            mark = LINE_MARK.match(line)
            marks.append(mark[0].strip() if mark else "")
    return marks


def protected(text: str) -> tuple[list[Span], list[Span]]:
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
