"""What is protected is found, carried through as markers, and put back exactly or not at all."""

from __future__ import annotations

import itertools
import random

import pytest

from cctuning.pairing.translation.segments import mask, restore, split
from cctuning.pairing.translation.segments import protected as find
from tests.pairing.translation.test_segments import texts


def protected(text: str) -> list[str]:
    spans, blocks = find(text)
    return [text[start:end] for start, end in sorted(spans + blocks)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Run `ls -l` and ``a ` b``.", ["`ls -l`", "``a ` b``"]),
        (
            "See https://a.example/x_(y)?z=1. Or (http://b.example/c).",
            ["https://a.example/x_(y)?z=1", "http://b.example/c"],
        ),
        ("请访问https://a.example/路径。谢谢", ["https://a.example/"]),
        ("https://ru.wikipedia.org/wiki/Москва, да", ["https://ru.wikipedia.org/wiki/Москва"]),
        ("Andika kwa a.b@c.example.", ["a.b@c.example"]),
        ("请联系foo@bar.com谢谢。", ["foo@bar.com"]),  # no space around an address
        ("ติดต่อfoo@bar.comได้เลย", ["foo@bar.com"]),
        ("foo@bar.com으로 보내세요", ["foo@bar.com"]),
        ("An jörg@müller.de schreiben", ["jörg@müller.de"]),
        ("อ่านได้ที่https://a.example/xได้เลย", ["https://a.example/x"]),
        ("ອ່ານhttps://a.example/xໄດ້", ["https://a.example/x"]),
        ("មើលwww.a.exampleបាន", ["www.a.example"]),
        ("https://a.example/xတွင်ဖတ်ပါ။", ["https://a.example/x"]),
        ("یہ دیکھیں https://a.example۔ شکریہ", ["https://a.example"]),
        ("https://a.example። https://b.example། https://c.example॥", [f"https://{x}.example" for x in "abc"]),
        (
            "{name} {0} {} {x.y[0]!r:>10} ${VAR} {{ jinja }}",
            ["{name}", "{0}", "{}", "{x.y[0]!r:>10}", "${VAR}", "{{ jinja }}"],
        ),
        ("%s %d %5.2f %1$s %(n)s but 100% sure and 50%of", ["%s", "%d", "%5.2f", "%1$s", "%(n)s"]),
        ('<b class="x">bold</b> <|im_end|> a < b and c > d &nbsp;', ['<b class="x">', "</b>", "<|im_end|>", "&nbsp;"]),
        (r"\(x^2\) and $$y. z$$ but $5 and $6", [r"\(x^2\)", "$$y. z$$"]),
        ("a [[3]] b", ["[[3]]"]),
        ("x\n```py\ncode\n\nmore\n```\ny", ["```py\ncode\n\nmore\n```"]),
        ("x\n  ~~~\n```\n~~~\ny\n```\nnever closed", ["  ~~~\n```\n~~~", "```\nnever closed"]),
        ("```x = 1``` hufanya nini?\nTafadhali eleza.", ["```x = 1```"]),  # no fence
        ("~~~ a `tick`\nx\n~~~\ny", ["~~~ a `tick`\nx\n~~~"]),
        ("It's 3.14, or -7; not x2. “Hi” (yes)", []),
    ],
)
def test_what_is_found(text, expected):
    assert protected(text) == expected


def test_masked_and_restored_is_the_text():
    for text in texts(2):
        spans, blocks = find(text)
        both = sorted(spans + blocks)
        assert all(start < end for start, end in both)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(both))
        for piece in split(text, 1000, False, spans, blocks):
            masked, kept = mask(piece.text, piece.spans)
            assert piece.kept or restore(masked, kept) == piece.text


def test_a_marker_that_an_engine_has_changed_is_known_again_and_a_lost_one_noticed():
    kept = ["`a`", "https://x.example"]
    for said in (
        "x [[0]] y [[1]]",
        "[[1]] then [[0]]",
        "[ [0] ] and [[ 1 ]]",
        "［［0］］、【【1】】",
        "[[०]] [[१]]",
        "[[٠]] [[١]]",
    ):
        restored = restore(said, kept)
        assert restored is not None and all(text in restored for text in kept)
    for said in ("x [[0]] y", "[[0]] [[1]] [[1]]", "[[0]] [[1]] [[2]]", "[0] [1]", ""):
        assert restore(said, kept) is None


def test_whatever_an_engine_does_to_markers_a_restored_text_holds_each_span_once():
    draw = random.Random(3)
    for text in texts(4):
        spans, _ = find(text)
        masked, kept = mask(text, spans)
        cuts = sorted(draw.choices(range(len(masked) + 1), k=2))
        damaged = draw.choice(
            [masked[: cuts[0]] + masked[cuts[1] :], masked[cuts[0] :] + masked[: cuts[0]], masked * 2]
        )
        restored = restore(damaged, kept)
        assert restored is None or all(restored.count(one) >= kept.count(one) for one in kept)
