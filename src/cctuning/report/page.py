"""Build the page and its parts from the templates `page.html` and `parts.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cctuning.report.style import STYLE

_ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
_PARTS: Any = _ENVIRONMENT.get_template("parts.html").module
paragraph, heading, bullets, table = _PARTS.paragraph, _PARTS.heading, _PARTS.bullets, _PARTS.table
figure, side_by_side, example = _PARTS.figure, _PARTS.side_by_side, _PARTS.example


@dataclass
class Section:
    """A part of the page under its own heading. Parts that are not `Markup` are escaped."""

    key: str
    title: str
    parts: list[Markup] = field(default_factory=list)

    def add(self, *parts: Markup) -> Section:
        self.parts += parts
        return self


def document(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The page: one file without scripts that loads nothing."""
    values = {"title": title, "lead": lead, "sections": sections, "footer": footer, "style": STYLE}
    return _ENVIRONMENT.get_template("page.html").render(values)
