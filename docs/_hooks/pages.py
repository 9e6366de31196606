"""MkDocs hook: pages made from the code and from files outside docs/, and links between the two.

- README.md, CHANGELOG.md and recipes/README.md become pages of the site.
- Every option of every verb becomes a page under reference/, from the dataclasses and parsers that read it.
- A link to a file of the repository that is no page of the site points to the repository (`repo_url` in mkdocs.yml),
  or is left as plain text where there is none. Pictures outside docs/ are copied.
"""

from __future__ import annotations

import argparse
import html
import importlib
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints
from unittest import mock

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "recipes/README.md": "guides/recipes.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
Row = tuple[str, str, str, str]  # option, what it takes, default, help


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of the navigation that follow from what is there."""
    assert config.nav is not None
    sections = {next(iter(one)): one for one in config.nav}
    lab = [path.relative_to(DOCS).as_posix() for path in sorted((DOCS / "lab").rglob("*.md"))]
    lab.remove("lab/README.md")
    results = [path.relative_to(DOCS).as_posix() for path in sorted((DOCS / "results").glob("*.md"))]
    sections["Results"]["Results"] = ["lab/README.md", *lab, *results]
    sections["Guides"]["Guides"].append(PAGES["recipes/README.md"])
    sections["Reference"]["Reference"] += [f"reference/{name}.md" for name in _verbs()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and the pictures that pages show from outside it."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, text in _verbs().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for path in [*(DOCS / file.src_uri for file in files.documentation_pages()), *(ROOT / name for name in PAGES)]:
        if path.is_file():
            for picture, _, target in LINK.findall(path.read_text(encoding="utf-8")):
                outside = _inside(path, target)
                if picture and outside and outside.is_file() and not outside.is_relative_to(DOCS):
                    place = f"assets/{outside.relative_to(ROOT).as_posix()}"
                    if files.get_file_from_path(place) is None:
                        files.append(File.generated(config, place, abs_src_path=str(outside)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site where there is one for the file that they name."""
    uri = page.file.src_uri
    source = next((ROOT / name for name, made in PAGES.items() if made == uri), DOCS / uri)

    def link(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        path = _inside(source, target)
        if path is None:
            return match.group(0)
        anchor = "".join(target.partition("#")[1:])
        name = path.relative_to(ROOT).as_posix()
        place = PAGES.get(name) or (path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else None)
        if picture and place is None:
            place = f"assets/{name}"
        if place and files.get_file_from_path(place) is not None:
            return f"{picture}[{text}]({os.path.relpath(place, Path(uri).parent)}{anchor})"
        if not path.exists():
            return match.group(0)  # MkDocs then says that the link is broken
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{name}{anchor})" if config.repo_url else text

    parts = re.split(r"(^```.*?^```[^\n]*$)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def _inside(source: Path, target: str) -> Path | None:
    """The file of the repository that a link names; None for an address, or an anchor of the same page."""
    if re.match(r"[a-z]+:|#", target):
        return None
    path = Path(os.path.normpath(source.parent / target.partition("#")[0]))
    return path if path.is_relative_to(ROOT) else None


def _verbs() -> dict[str, str]:
    """The page of each verb: name of the page -> Markdown."""
    from cctuning.cli import VERBS

    made = {"train": _train(), "pair": _pair(), "data": _data()}
    for verb in VERBS:
        if verb not in ("train", "align", "pair"):
            made[verb] = _arguments(f"cctuning {verb}", parser_of(verb))
    made["recipes"] += _recipes()
    return made


def _recipes() -> str:
    """Every recipe in full, folded."""
    parts = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8").rstrip().replace("\n", "\n    ")
        parts.append(f'\n??? note "{path.stem}"\n    ```yaml\n    {text}\n    ```\n')
    return "\n## Recipes\n" + "".join(parts)


def _train() -> str:
    from cctuning.cli.train import DESCRIPTIONS, groups
    from cctuning.connection import ConnectionConfig
    from cctuning.training import CCConfig
    from cctuning.training.options import RunOptions

    about = """Every option is a flag (`--learning_rate 1e-4`) and a key of a recipe (`learning_rate: 1.0e-4`). Flags
override recipes; of several recipes (`--config A --config B`) a later one overrides an earlier one."""
    lines = ["# cctuning train, cctuning align", f"{DESCRIPTIONS['train']} `cctuning align` takes no `--data`.", about]
    kinds = (RunOptions, ConnectionConfig, CCConfig)
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    left = {one.name: one for kind in kinds for one in fields(kind) if one.init}
    for _, heading, members in groups():
        own = [left.pop(name) for name in list(left) if name in members]
        lines += [f"## {heading}", _table(_field(one, hints[one.name]) for one in own)]
    return "\n\n".join(lines) + "\n"


def _pair() -> str:
    from cctuning.pairing.mining import MineOptions
    from cctuning.pairing.names import NamesOptions
    from cctuning.pairing.options import Checks, PairOptions, PairSource
    from cctuning.pairing.selecting import SelectOptions
    from cctuning.pairing.translation.chat import ChatOptions
    from cctuning.pairing.translation.function import FunctionOptions
    from cctuning.pairing.translation.seq2seq import Seq2SeqOptions

    about = "Options of `cctuning pair` and its sub-commands. The first three tables are also keys of a recipe."
    kinds = {
        "cctuning pair": PairOptions,
        "Checks": Checks,
        "A source in a recipe (`sources:`)": PairSource,
        "cctuning pair select": SelectOptions,
        "cctuning pair names": NamesOptions,
        "cctuning pair mine": MineOptions,
        "Engine `seq2seq`": Seq2SeqOptions,
        "Engine `chat`": ChatOptions,
        "Engine `function`": FunctionOptions,
    }
    return "\n\n".join(["# cctuning pair", about, *_sections(kinds)])


def _data() -> str:
    from cctuning.data import ParallelSource, Source

    about = """Keys of an entry of `data:`, `eval_data:` and `parallel:` in a recipe of `cctuning train`. An
entry may also be a path alone."""
    kinds = {"`data`, `eval_data`": Source, "`parallel`": ParallelSource}
    return "\n\n".join(["# Sources in a recipe", about, *_sections(kinds)])


def _sections(kinds: dict[str, type]) -> list[str]:
    parts = []
    for heading, kind in kinds.items():
        hints = get_type_hints(kind)
        parts += [f"## {heading}", _table(_field(one, hints[one.name]) for one in fields(kind) if one.init)]
    return parts


class _Found(Exception):
    pass


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser that a verb's `main` makes."""
    from cctuning.cli.options import Plain

    def found(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Found(self)

    with mock.patch.object(Plain, "parse_args", found):
        try:
            importlib.import_module(f"cctuning.cli.{verb}").main([])
        except _Found as one:
            parser: argparse.ArgumentParser = one.args[0]
            return parser
    raise AssertionError(f"cctuning {verb} makes no parser")


def _arguments(title: str, parser: argparse.ArgumentParser, level: int = 1) -> str:
    parts = [f"{'#' * level} {title}", html.escape(parser.description or "", quote=False)]
    rows: list[Row] = []
    below: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {one.dest: one.help or "" for one in action._choices_actions}
            for name, one in action.choices.items():
                one.description = one.description or helps.get(name, "")
                below.append(_arguments(f"{title} {name}", one, level + 1))
        elif not isinstance(action, argparse._HelpAction):
            rows.append(_argument(action))
    return "\n\n".join([*parts, *([_table(rows)] if rows else []), *below]) + "\n"


def _argument(action: argparse.Action) -> Row:
    name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
    if action.choices:
        takes = " or ".join(str(choice) for choice in action.choices if choice)
    elif action.nargs == 0:
        takes = "flag"
    else:
        takes = {int: "number", float: "number"}.get(action.type, "text")  # type: ignore[call-overload]
    takes += ", several" if action.nargs in ("+", "*") else ""
    default = "required" if action.required and action.option_strings else _shown(action.default)
    default = default.replace(str(Path.home()), "~")
    return name, takes, "" if action.nargs == 0 else default, (action.help or "").replace("%%", "%")


def _field(option: Field[Any], hint: Any) -> Row:
    from cctuning.cli.options import _kind

    default = option.default_factory() if option.default_factory is not MISSING else option.default
    choices = [str(choice) for choice in option.metadata.get("choices", ()) if choice]
    takes = " or ".join(choices) if choices else _kind(hint)
    named = {
        "true|false": "true or false",
        "N": "whole number",
        "X": "number",
        "TEXT …": "text, several",
        "JSON": "mapping",
    }
    shown = "required" if default is MISSING else _shown(getattr(default, "value", default))
    return (
        option.name,
        named.get(takes, takes.lower()),
        shown.replace(str(Path.home()), "~"),
        str(option.metadata.get("help", "")),
    )


def _shown(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {} or value is argparse.SUPPRESS:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(rows: Iterable[Row]) -> str:
    lines = ["| option | takes | default | |", "| --- | --- | --- | --- |"]
    for name, takes, default, about in rows:
        cells = (f"`{name}`", _cell(takes), f"`{default}`" if default else "", _cell(about))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text of a table's cell, where only code marks are Markdown."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = (re.sub(r"([*_])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2])
    return "`".join(parts).replace("|", "\\|")
