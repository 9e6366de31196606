"""Names of recipes and worlds."""

from __future__ import annotations

from collections.abc import Callable

from cctuning.errors import UserError, nearest
from experiments.real import recipes
from experiments.real.named import Named, countries, emoji_things
from experiments.real.recipes import Recipe
from experiments.real.rivals.distil import align_pseudo, distil, pack_pseudo, pseudo
from experiments.real.rivals.incline import incline
from experiments.real.rivals.mid_align import mid_align
from experiments.real.rivals.swap import swap
from experiments.real.several import Several
from experiments.real.translated import Translated
from experiments.real.worlds import Bmlama, Sib200, World

SIB = (
    "en", "ar", "bn", "de", "el", "es", "fa", "fi", "fr", "he", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru",
    "sw", "ta", "te", "th", "tr", "ur", "vi", "yo", "zh",
)  # fmt: skip
EMOJI = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
EMOJI_DEMO = ("en", "es", "de", "ru", "tr", "fa", "id", "ko", "it")
COUNTRIES = ("en", "fr", "de", "es", "pt", "it", "tr", "sw", "id", "fi", "hu", "vi", "so", "pl")
GENERAL = ("own", "tatoeba", "tico")
NEVER = ("it", "ko", "pl", "th", "yo")  # five languages of all families and tiers that get no parallel text

FOUR = ("en", "fr", "ru", "tr")


def several(task: str) -> World:
    """Return a task of SIB-200, emoji or BMLAMA with the parallel text of all three."""
    worlds: dict[str, World] = {
        "sib200": Sib200(FOUR),
        "emoji": Named(FOUR, "emoji", emoji_things),
        "bmlama": Bmlama(FOUR, answers="en", name="bmlama-en"),
    }
    return Several(task, worlds, {"sib200": "own", "emoji": "own", "bmlama": "names"})


WORLDS: dict[str, Callable[[], World]] = {
    "sib200": lambda: Sib200(SIB, GENERAL),
    "sib200-west": lambda: Sib200(("en", "fr", "de", "es", "pt"), GENERAL),
    "sib200-four": lambda: Sib200(("en", "el", "sw", "ta", "bn", "yo"), GENERAL),
    # Languages that Gemma 3 270M knows little of, with two corpora of other domains.
    "sib200-low": lambda: Sib200(("en", "bn", "sw", "ta", "ur"), ("own", "corpus")),
    "sib200-spanish": lambda: Translated(("en", "es")),
    "sib200-tiny": lambda: Sib200(("en", "fr", "sw"), cap=8),  # for a quick test
    "emoji": lambda: Named(EMOJI, "emoji", emoji_things),
    "emoji-demo": lambda: Named(EMOJI_DEMO, "emoji", emoji_things),
    "countries": lambda: Named(COUNTRIES, "countries", countries),
    "bmlama": lambda: Bmlama(FOUR, name="bmlama"),
    "bmlama-en": lambda: Bmlama(FOUR, answers="en", name="bmlama-en"),
    "several-sib200": lambda: several("sib200"),
    "several-emoji": lambda: several("emoji"),
    "several-bmlama": lambda: several("bmlama"),
}

RECIPES: dict[str, Recipe] = {
    "base": recipes.base,
    "plain": recipes.plain,
    "align": recipes.align,
    "pack": recipes.pack,
    "pack-added": recipes.pack_added,
    "pack-align": recipes.pack_align,
    "pack-translation": recipes.pack_translation,
    "cc": recipes.cc,
    "translation-rows": recipes.translation_rows,
    "translation-both": recipes.translation_both,
    "translation-first": recipes.translation_first,
    "text-rows": recipes.text_rows,
    "text-first": recipes.text_first,
    "mid-align": mid_align,
    "pseudo": pseudo,
    "align-pseudo": align_pseudo,
    "pack-pseudo": pack_pseudo,
    "distil": distil,
    "swap": swap,
    "incline": incline,
}


def recipe_of(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"recipe: {name!r} is not one of {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    return RECIPES[name]


def world_of(name: str) -> World:
    """Return the world of this name.

    Raises:
        UserError: there is none.
    """
    if name not in WORLDS:
        raise UserError(f"world: {name!r} is not one of {', '.join(WORLDS)}.{nearest(name, WORLDS)}")
    return WORLDS[name]()
