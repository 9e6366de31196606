"""The page: headings, figures, tables and the style sheet. All that comes from a file is escaped here or in svg.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from cctuning.report.style import STYLE
from cctuning.report.svg import Chart


@dataclass
class Section:
    """A part of the page under its own heading; `parts` are HTML."""

    key: str
    title: str
    parts: list[str] = field(default_factory=list)

    def add(self, *parts: str) -> Section:
        self.parts += parts
        return self


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(style)}>{escape(text)}</p>"


def heading(text: str, level: int = 3) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in lines) + "</ul>"


def _class(style: str) -> str:
    return f' class="{style}"' if style else ""


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table with a caption; the first cell of a row names it. `words`: columns of text, set to the left."""

    def cell(place: int, content: str) -> str:
        style = "" if place in words else ' class="num"'
        return f'<th scope="row"{style}>{escape(content)}</th>' if not place else f"<td{style}>{escape(content)}</td>"

    head = "".join(
        f'<th scope="col"{"" if place in words else _class("num")}>{escape(name)}</th>'
        for place, name in enumerate(header)
    )
    body = "".join("<tr>" + "".join(cell(place, one) for place, one in enumerate(row)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(name: str, says: str, chart: Chart, figures: str) -> str:
    """A chart under the sentence that says what it shows, its figures as a table below it.

    Args:
        name: whose it is (a run), or empty.
        figures: HTML of the table.
    """
    legend = "".join(f"<li>{key}{escape(label)}</li>" for label, key in chart.legend)
    return (
        f"<figure><figcaption>{f'<b>{escape(name)}</b> ' if name else ''}{escape(says)}</figcaption>{chart.render()}"
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + f"<details><summary>Table: {escape(chart.title)}</summary>{figures}</details></figure>"
    )


def side_by_side(figures: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'


def document(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page: one file, nothing loaded, no script."""
    links = "".join(f'<li><a href="#{one.key}">{escape(one.title)}</a></li>' for one in sections)
    body = "".join(
        f'<section id="{one.key}" aria-labelledby="{one.key}-title"><h2 id="{one.key}-title">{escape(one.title)}</h2>'
        f"{''.join(one.parts)}</section>"
        for one in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header><h1>{escape(title)}</h1><p>{escape(lead)}</p>
<nav aria-label="Parts of the report"><ul>{links}</ul></nav></header>
<main id="main" tabindex="-1">{body}</main>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""
