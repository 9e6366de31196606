"""The page's tables from the records of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.real.figures import Record
from experiments.real.table import Results, language_table, main_table, search_table

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
BY_LANGUAGE = ("plain", "pack", "align", "cc", "plain-all", "mid-align")


def page(records: Sequence[Record]) -> str:
    """Markdown."""
    results = Results(records)
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
        "### Controls",
        main_table(results, CONTROLS),
    ]
    for start, title in starts.items():
        groups = {group: group for group in results.groups if group.startswith(start)}
        if groups:
            parts += [f"### {title}", main_table(results, {"plain": "plain SFT", "pack": "pack", **groups})]
    for plain, packs, title in (
        ("50 plain", ["50 pack"], "Fifty labels in every language"),
        ("100 English plain", ["100 English pack"], "A hundred labels in English alone"),
    ):
        if plain in results.groups:
            parts += [f"### {title}", main_table(results, {name: name for name in (plain, *packs)}, plain)]
    named = {group: COMPARED[group] for group in BY_LANGUAGE if group in results.groups}
    parts += ["### By language", language_table(results, named)]
    options = ("rate", "weight", "epochs", "pack_rate", "pack_passes")
    searched = [group for group in COMPARED if group in results.groups]
    parts += ["### What was searched (seed 0)", search_table(results, searched, options)]
    return "\n\n".join(parts) + "\n"
