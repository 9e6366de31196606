"""Write the tables of docs/lab/real.md from the records of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from cctuning.errors import UserError
from experiments.real.figures import Record, best
from experiments.real.table import SEEDS, Results, language_table, main_table, pair_table, search_table

COMPARED = {
    "base": "untrained",
    "plain": "plain SFT, English labels",
    "pack": "pack, then plain SFT",
    "align": "align, both at once",
    "pack-align": "pack, then align",
    "cc": "cc (gate and matrix)",
    "plain-all": "plain SFT, labels in all 28 languages",
    "mid-align": "mid-align (2502.14830)",
    "translation-rows": "the same text as translation rows",
    "translation-first": "translation first (2405.13816)",
    "text-first": "the same text as plain text, first",
    "text-rows": "the same text as plain text, mixed in",
    "distil": "distillation from the English prompt",
    "pseudo": "labels by the English model",
    "swap": "layer swapping (2410.01335)",
    "incline": "INCLINE (2410.12462)",
}
CONTROLS = {
    "plain": "plain SFT",
    "pack": "pack",
    "control wrong": "pack, wrong pairs",
    "control relative": "pack, relative error",
    "control current": "pack, English live",
    "align": "align",
    "control wrong joint": "align, wrong pairs",
    "control own": "labels in all languages, aligned to their own English rows",
}
PAIRS = (
    ("align", "plain-all"),
    ("cc", "align"),
    ("cc", "plain-all"),
    ("pack", "align"),
    ("pseudo", "align"),
    ("distil", "align"),
    ("mid-align", "align"),
)
SAME_RATE = 5e-5
BY_LANGUAGE = ("plain", "pack", "align", "cc", "plain-all", "mid-align")


def _pairs(results: Results) -> list[tuple[str, Sequence[Record], Sequence[Record]]]:
    found: list[tuple[str, Sequence[Record], Sequence[Record]]] = []
    for one, two in PAIRS:
        found.append((f"{one} - {two}", results.chosen(one), results.chosen(two)))
    for group in ("align", "cc", "pack", "pseudo", "plain-all"):
        same = [record for record in results.groups.get(group, []) if record["cell"]["setting"]["rate"] == SAME_RATE]
        plain = [record for record in results.groups["plain"] if record["cell"]["setting"]["rate"] == SAME_RATE]
        if same and plain:
            chosen = same[best({number: [record] for number, record in enumerate(same)})]
            found.append((f"{group} - plain, both at {SAME_RATE:g}, seed 0", [chosen], plain))
    return found


def page(records: Sequence[Record]) -> str:
    """Return the tables as Markdown.

    Raises:
        UserError: records of another plan.
    """
    results = Results(records)
    if "plain" not in results.groups:
        raise UserError(
            f"no record of the group plain; there are {', '.join(results.groups) or 'none'}. The table of a plan for "
            "two cores: python -m experiments.real.plans NAME RESULTS."
        )
    tiers = results.tiers
    starts = {
        "variant ": "Variants of the pack",
        "sentences ": "Sentences of parallel text a language",
        "source ": "Other text",
        "languages ": "Fewer languages with text",
    }
    parts = [
        "### The recipes",
        main_table(results, COMPARED),
        f"low: {' '.join(tiers.low)}. mid: {' '.join(tiers.mid)}. high: {' '.join(tiers.high)}.",
        "### One against another",
        pair_table(results, _pairs(results)),
        "### Controls",
        main_table(results, CONTROLS),
    ]
    for start, title in starts.items():
        groups = {group: group for group in results.groups if group.startswith(start)}
        if groups:
            parts += [f"### {title}", main_table(results, {"plain": "plain SFT", "pack": "pack", **groups})]
    for start, title in (
        ("50 ", "Fifty labels in every language"),
        ("100 English ", "A hundred labels in English alone"),
    ):
        if f"{start}plain" in results.groups:
            groups = {
                group: group for group in results.groups if group.startswith(start) and not group.endswith(SEEDS)
            }
            parts += [f"### {title}", main_table(results, groups, f"{start}plain")]
    shown = {group: COMPARED[group] for group in BY_LANGUAGE if group in results.groups}
    parts += ["### By language", language_table(results, shown)]
    options = ("rate", "weight", "epochs", "pack_rate", "pack_passes")
    few = [group for group in results.groups if group.startswith(("50 ", "100 English ")) and SEEDS not in group]
    searched = [group for group in (*COMPARED, *few) if group in results.groups]
    parts += ["### What was searched (seed 0)", search_table(results, searched, options)]
    return "\n\n".join(parts) + "\n"
