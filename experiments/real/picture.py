"""Draw the README's figure: accuracy by language with and without parallel text.

python -m experiments.real.picture docs/lab/results/real-sib200.jsonl.gz docs/results/sib200.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cctuning.languages import language_name
from experiments.real.figures import Record, accuracy, others
from experiments.real.table import Results, records_of
from experiments.real.worlds import ENGLISH

WIDTH, LEFT, TOP, PLOT, STEP = 760, 40, 54, 230, 25.4
STYLE = """
text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}.grid{stroke:#ddd}
.plain{fill:#fff;stroke:#8a5a00;stroke-width:1.6}.align{fill:#1f5fbf}.all{stroke:#555;stroke-width:2}
.gain{stroke:#1f5fbf;stroke-width:2}.loss{stroke:#b3261e;stroke-width:2}
@media (prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.plain{fill:#1a1a1a;stroke:#e0a93b}
.align{fill:#7fb0ff}.all{stroke:#aaa}.gain{stroke:#7fb0ff}.loss{stroke:#ff8a80}}"""


def picture(records: Sequence[Record]) -> str:
    """SVG: for each language plain SFT on English labels, the same with parallel text, and labels in all languages."""
    results = Results(records)
    plain, align, joint = (results.chosen(group) for group in ("plain", "align", "plain-all"))
    without = align[0]["cell"]["setting"]["text"]["without"]
    languages = [ENGLISH, *sorted(others(plain[0]), key=lambda lang: -accuracy(plain, "test", [lang]))]
    low = 10 * int(min(accuracy(side, "test", [lang]) for side in (plain, align) for lang in languages) // 10)

    def height(value: float) -> float:
        return TOP + PLOT * (100 - value) / (100 - low)

    parts = []
    for tick in range(low, 101, 10):
        y = height(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for place, lang in enumerate(languages):
        x = LEFT + STEP * (place + 0.5)
        before, after, most = (height(accuracy(side, "test", [lang])) for side in (plain, align, joint))
        change = "gain" if after <= before else "loss"
        parts.append(f'<line class="{change}" x1="{x:.1f}" x2="{x:.1f}" y1="{before:.1f}" y2="{after:.1f}"/>')
        parts.append(f'<line class="all" x1="{x - 7:.1f}" x2="{x + 7:.1f}" y1="{most:.1f}" y2="{most:.1f}"/>')
        parts.append(f'<circle class="plain" cx="{x:.1f}" cy="{before:.1f}" r="4"/>')
        parts.append(f'<circle class="align" cx="{x:.1f}" cy="{after:.1f}" r="4"/>')
        name = escape(language_name(lang)) + ("*" if lang in without else "")
        y = TOP + PLOT + 16
        parts.append(
            f'<text transform="rotate(-55 {x + 4:.1f} {y})" x="{x + 4:.1f}" y="{y}" text-anchor="end">{name}</text>'
        )
    legend = [
        ('<circle class="plain" cx="5" cy="-4" r="4"/>', "English labels"),
        ('<circle class="align" cx="5" cy="-4" r="4"/>', "English labels + parallel text"),
        ('<line class="all" x1="-2" x2="12" y1="-4" y2="-4"/>', "labels in every language"),
        ("", "* no parallel text"),
    ]
    x = float(LEFT)
    for mark, name in legend:
        parts.append(
            f'<g transform="translate({x:.0f} 40)">{mark}<text x="{18 if mark else 0}" y="0">{name}</text></g>'
        )
        x += 40 + 6.6 * len(name)
    title = "Topics of sentences (SIB-200), Gemma 3 270M, % right"
    bottom = TOP + PLOT + 100
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {bottom}" width="{WIDTH}">'
        f"<title>{title}, by language</title><style>{STYLE}</style>"
        f'<text class="title" x="{LEFT}" y="18">{title}</text>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(records_of([Path(sys.argv[1])])), encoding="utf-8")
