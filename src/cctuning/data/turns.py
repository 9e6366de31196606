"""Where a conversation's earlier turns of the assistant stand in its rendering, so that they can be learned too.

As TRL's `assistant_only_loss` does it, whose way is a template with `{% generation %}` marks. Here a turn is found in
any template's text: it is rendered once more with another turn in its place, and where the two differ it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cctuning.data.rows import Message

ELSE = "\ue000CCTUNING\ue001"  # what no turn says: its ends are no text's characters
END = re.compile(r"\s*<[^<>\s]{1,40}>")  # the mark that ends a turn, which its assistant has to write


def learned(prompt: Sequence[Message], text: str, render: Callable[[list[Message]], str]) -> list[tuple[int, int]]:
    """The places in `text` (first character, and the one after the last) of the turns that are to be learned.

    Args:
        prompt: the messages that `text` renders.
        render: renders others in the same way.
    """
    places = []
    for turn, message in enumerate(prompt):
        if message["role"] != "assistant" or message.get("train") is False:
            continue
        other = render([*prompt[:turn], {"role": "assistant", "content": ELSE}, *prompt[turn + 1 :]])
        start = _alike(text, other)
        end = len(text) - _alike(text[start:][::-1], other[start:][::-1])
        if end > start and ELSE in other[start:]:
            closing = END.match(text, end)
            places.append((start, closing.end() if closing else end))
    return places


def _alike(one: str, other: str) -> int:
    """How many characters the two begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
