"""What README and docs/ tell a reader to run exists: verbs, options, values, scripts, tests, links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from cctuning.cli import VERBS

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "recipes", "experiments")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/**/*.md"))])
# Pages of docs/lab say how an experiment was run on its day, the changelog what a version had.
CURRENT = [page for page in PAGES if "docs/lab/" not in page.as_posix() and page.name != "CHANGELOG.md"]


def hook() -> ModuleType:
    """The site's hook, which knows every verb's parser."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "_hooks" / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `cctuning VERB ...` in the shell blocks of a page."""
    for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^(.*-m )?cctuning ", "cctuning ", line.strip())
            if line.startswith("cctuning "):
                yield shlex.split(line if line.count('"') % 2 == 0 else line + '"', comments=True)


def options(verb: str, words: list[str]) -> dict[str, tuple[str, ...]]:
    """Option -> the values it may have, if they are few."""
    from cctuning.connection import ConnectionConfig
    from cctuning.pairing.mining import MineOptions
    from cctuning.pairing.names import NamesOptions
    from cctuning.pairing.options import Checks, PairOptions
    from cctuning.pairing.selecting import SelectOptions
    from cctuning.training import CCConfig
    from cctuning.training.options import RunOptions

    actions = {"select": (SelectOptions,), "names": (NamesOptions,), "mine": (MineOptions,)}
    if verb in ("train", "align"):
        kinds: tuple[type, ...] = (RunOptions, ConnectionConfig, CCConfig)
    elif verb == "pair":
        kinds = actions.get(words[2] if len(words) > 2 else "", (PairOptions, Checks))
    else:
        parser = hook().parser_of(verb)
        return {one: tuple(map(str, a.choices or ())) for a in parser._actions for one in a.option_strings}
    extra = ("config", "accelerate_config", "num_processes", "help")
    known: dict[str, tuple[str, ...]] = {f"--{name}": () for name in extra}
    for one in (one for kind in kinds for one in fields(kind)):
        known[f"--{one.name}"] = tuple(map(str, one.metadata.get("choices", ())))
    return known


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_commands_on_the_page_exist(page):
    for words in commands(page):
        verb = words[1]
        if verb == "--version" or verb == "VERB":
            continue
        assert verb in VERBS, " ".join(words)
        known = options(verb, words)
        for place, word in enumerate(words):
            if word.startswith("--"):
                flag, equals, value = word.partition("=")
                assert flag in known, f"{' '.join(words)}: no option {flag}"
                value = value if equals else words[place + 1] if place + 1 < len(words) else ""
                choices = known[flag]
                assert not choices or value in choices or value.startswith("--"), f"{flag} {value}: one of {choices}"


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_files_and_tests_that_the_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\bpython (?:-m pytest )?((?:bench|tests|experiments)/[\w./]+\.py)", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"\bpython -m ((?:experiments|bench)[\w.]*)", text):
        place = ROOT / module.rstrip(".").replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    for path, test in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", text):
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"
    for target in re.findall(r"\bmake ([\w-]+)", re.sub(r"[^`]*(`[^`]*`)?", r"\1 ", text)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or target.startswith("../reference/") or target.startswith("reference/"):
            continue  # the reference is made with the site, whose strict build checks links to it
        found = page if not path else (page.parent / path).resolve()
        assert found.exists(), f"{target}: no {found}"
        if anchor and found.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            made = [re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads]
            assert anchor in made, f"{target}: {found.name} has {made}"


def test_the_reference_lists_every_option():
    pages = hook()._verbs()
    assert "`align_temperature`" in pages["train"] and "`learning_rate`" in pages["train"]
    assert "`--format`" in pages["export"] and "merged" in pages["export"]
    assert "`check_meaning`" in pages["pair"] and "`near_duplicate`" in pages["pair"]
    assert set(pages) >= set(VERBS) - {"align"}
