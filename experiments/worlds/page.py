"""A notebook page of an experiment: what was asked, how it was set up, what came out, what is concluded.

Everything but the question and the conclusion is written from the files of the experiment, and written anew each time;
those two are a person's, and kept, with all that follows the conclusion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cctuning.demo.base import BaseConfig
from cctuning.errors import UserError
from cctuning.markdown import table
from experiments.worlds.grid import SLACK
from experiments.worlds.plot import against_vanilla
from experiments.worlds.recipes import RECIPES
from experiments.worlds.setups import SETUPS
from experiments.worlds.table import markdown

KEPT = {"Question": "^## Set-up$", "Conclusion": r"\Z"}  # a person's section -> what comes after it


def page(
    setup: str,
    date: str,
    summary: Mapping[str, Any],
    search: Mapping[str, Any],
    before: str | None,
    pictures: Sequence[str] = (),
) -> str:
    """The page as Markdown.

    Args:
        pictures: lines of Markdown that show them.
        date: of the run. summary, search: of `experiment`. before: the page as it stands, if it does.
    """
    kept = {name: _section(before or "", name) or "(to be written)" for name in KEPT}
    bases, versions = summary["bases"], summary["versions"]
    names = " ".join(name for name in summary["recipes"] if name in RECIPES)
    searched = search.get("setup", setup)
    search_bases, slack = search["search_bases"], search.get("english_slack", SLACK)
    asked = ""
    if searched != setup:
        asked = f" --settings_of {searched}"
    elif search_bases != [100] or slack != SLACK:
        asked = f" --search_bases {' '.join(map(str, search_bases))} --english_slack {slack:g}"
    made, batch = SETUPS[setup].config, SETUPS[setup].trained.get("per_device_train_batch_size", 32)
    lines = [
        f"# {setup}: {SETUPS[setup].says}",
        "",
        f"{date}. `python -m experiments.worlds run {setup} --recipes {names} "
        f"--bases {' '.join(map(str, bases))}{asked}`",
        "",
        "## Question",
        "",
        kept["Question"],
        "",
        "## Set-up",
        "",
        f"- World and base of the same seed, for each of {len(bases)} seeds: width {made.hidden_size}, {made.layers} "
        f"layers; {_taught(made)} read "
        + ", ".join(f"{share:.0%} ({tier})" for tier, share in made.share)
        + " of the questions.",
        f"- Every recipe: the settings that did best of {_most(search)} on the dev split of base "
        + f"{' and '.join(map(str, search_bases))} of `{searched}`, not reported, "
        f"if they kept English within {slack:g} point of the base's; where none did, the best of those that kept most "
        "of it.",
        f"- The same trainer, batch ({batch}), schedule (cosine) and rows for all, but where the recipe is other "
        "rows.",
        f"- Machine: {summary['machine']}; " + ", ".join(f"{name} {one}" for name, one in versions.items()) + ".",
        "",
        "## Result",
        "",
        markdown(setup, summary),
        *pictures,
        *[f"To be read with care: {note}.\n" for note in summary["unfit"]],
        "x: mean of the languages but English. bypass: without the transform. live: with the English question at "
        "hand. k tokens: thousands read in training, references included (forward only). s: seconds a cell.",
        "",
        "<details><summary>Every setting tried on the dev split</summary>",
        "",
        table(
            ["recipe", "settings", "x", "English", ""],
            [
                [
                    f"`{one['recipe']}`",
                    _settings(one["settings"]),
                    f"{one['x']:.1f}",
                    f"{one['english']:.1f}",
                    "chosen" if search["chosen"][one["recipe"]] == one["settings"] else "",
                ]
                for one in search["tried"]
                if one["recipe"] in search["chosen"]
            ],
        ),
        "",
        "</details>",
        "",
        "## Conclusion",
        "",
        kept["Conclusion"],
        "",
    ]
    return "\n".join(lines)


def _taught(made: BaseConfig) -> str:
    """How the base came to what it knows, up to the word `read`."""
    if made.vocab:
        return (
            f"a BPE of {made.vocab} tokens; {made.english_steps} steps of {made.batch_size} rows of {made.positions} "
            "tokens of real text; the languages"
        )
    if made.emergent:
        lists = f"and {made.switched_lists} of the word list " if made.switched_lists else ""
        return (
            f"{made.english_steps} steps of all languages at once, nothing grafted, parallel lines and "
            f"{made.switched} code-switched versions of each line {lists}among the text; the languages"
        )
    return (
        f"{made.english_steps} steps of English, graft (keep {made.keep}, noise {made.noise}, language vector "
        f"{made.language_vector}), {made.joint_steps} steps of all languages, which"
    )


def _section(text: str, name: str) -> str:
    found = re.search(rf"^## {name}\n+(.*?)(?={KEPT[name]}|\Z)", text, re.M | re.S)
    return found.group(1).strip() if found else ""


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _most(search: Mapping[str, Any]) -> str:
    counts = sorted({sum(one["recipe"] == name for one in search["tried"]) for name in search["chosen"]})
    return "eight" if counts == [8] else " or ".join(map(str, counts))


def write_page(setup: str, folder: Path, target: Path, date: str) -> None:
    """Write or renew the page `target` from the experiment's files in `folder`.

    Raises:
        UserError: a search newer than the results, which chose other settings than theirs.
    """
    home = folder / setup
    parts = [json.loads((home / name).read_text(encoding="utf-8")) for name in ("results.json", "search.json")]
    settings = {name: one["settings"] for name, one in parts[0]["recipes"].items() if "settings" in one}
    other = [name for name, own in settings.items() if parts[1]["chosen"].get(name) != own]
    if other:
        raise UserError(
            f"{home / 'search.json'}: does not choose the settings in results.json of {', '.join(other)}; "
            f"run `python -m experiments.worlds run {setup}` again without --dev_only: finished cells are kept."
        )
    before = target.read_text(encoding="utf-8") if target.is_file() else None
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for english in (False, True):
        drawn = against_vanilla(setup, parts[0], english)
        if drawn:
            what = "English" if english else "the other languages"
            picture = target.with_name(f"{target.stem}-{'english' if english else 'x'}.svg")
            picture.write_text(drawn, encoding="utf-8")
            pictures.append(f"![Each recipe minus vanilla, {what}; the figures are in the tables]({picture.name})\n")
    target.write_text(page(setup, date, parts[0], parts[1], before, pictures), encoding="utf-8")
