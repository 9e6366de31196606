"""Check that results can be compared, and note what else differs between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cctuning.errors import UserError
from cctuning.evaluation.answer_language import compare_shares
from cctuning.evaluation.saved_results import ScoredRun, task_warnings
from cctuning.languages import ENGLISH

FEW_ITEMS = 30  # with fewer, a percentile interval is known to be too narrow


def check_seeds(systems: Mapping[str, Sequence[ScoredRun]]) -> None:
    """Raise a `UserError` if the seeds of a system differ in mode, or if one of them is given twice."""
    for name, members in systems.items():
        weights: dict[str, ScoredRun] = {}
        for run in members:
            if run.mode != members[0].mode:
                raise UserError(
                    f"{name}: {members[0].path} has mode {members[0].mode} and {run.path} has {run.mode}; seeds of "
                    "one system need the same mode: give them different names."
                )
            other = weights.setdefault(str(run.record["model"].get("fingerprint") or run.path.resolve()), run)
            if other is not run:
                raise UserError(f"{name}: {other.path} and {run.path} hold the same weights; give each seed once.")


def common_tasks(runs: Sequence[ScoredRun], notes: list[str]) -> list[str]:
    """The tasks that all runs have; notes name the others."""
    common = [name for name in runs[0].items if all(name in run.items for run in runs)]
    if not common:
        told = "; ".join(f"{run.path}: {', '.join(run.items) or 'none'}" for run in runs)
        raise UserError(f"the runs have no task in common ({told}); score them on the same suite and languages.")
    for name in dict.fromkeys(name for run in runs for name in run.items if name not in common):
        lacking = ", ".join(str(run.path) for run in runs if name not in run.items)
        notes.append(f"task {name} left out: not in {lacking}.")
    return common


def check_same(runs: Sequence[ScoredRun], tasks: Sequence[str]) -> None:
    """Raise a `UserError` if runs were scored on other items, prompts, task versions, metrics or chat settings."""
    first = runs[0]

    def check(what: str, one: Any, other: Any, advice: str) -> None:
        if one != other:
            raise UserError(f"{what} differs: {one} in {first.path}, {other} in {run.path}; {advice}.")

    for run in runs[1:]:
        one_chat, other_chat = (bool(one.record["settings"].get("chat")) for one in (first, run))
        check("chat setting", one_chat, other_chat, "score both with --chat or both without")
        for name in tasks:
            for key, what in {"version": "version", "metric": "main metric", "language": "language"}.items():
                advice = "score both with the same version of cctuning and lm-eval"
                check(f"task {name}: {what}", first.about(name)[key], run.about(name)[key], advice)
            same = "score both on the same data, with the same --limit"
            check(f"task {name}: number of items", len(first.items[name]), len(run.items[name]), same)
            for column, what in (("document", "item"), ("prompt", "prompt of item")):
                one, other = first.items[name][column].align(run.items[name][column], fill_value="no such item")
                for item in one.index[one != other]:
                    advice = same if what == "item" else "use the same settings and template"
                    check(f"task {name}: {what} {item}", one[item], other[item], advice)


def reference_languages(runs: Sequence[ScoredRun], notes: list[str]) -> list[str]:
    """The reference languages of the runs, which are left out of means. A plain model has none."""
    named = [(run.system, str(run.record["model"].get("reference_language") or "")) for run in runs]
    found = list(dict.fromkeys(language for _, language in named if language))
    if len(found) > 1:
        told = ", ".join(f"{name} {language}" for name, language in dict.fromkeys(named) if language)
        notes.append(f"reference languages differ: {told}; means leave out all of these.")
    return found or [ENGLISH]


def system_notes(systems: Mapping[str, Sequence[ScoredRun]], base: str) -> list[str]:
    """Notes on modes, dtypes, versions and seeds."""
    notes = []
    of: dict[str, Callable[[ScoredRun], Any]] = {
        "modes": lambda run: run.mode,
        "dtypes": lambda run: str(run.record["model"].get("dtype")).removeprefix("torch."),
        "thinking_tokens": lambda run: run.record["settings"].get("thinking_tokens", "default"),
    }
    for what, value in of.items():
        found = {name: ", ".join({str(value(run)): 0 for run in members}) for name, members in systems.items()}
        if len({*found.values()}) > 1:
            notes.append(f"{what} differ: {', '.join(f'{name} {text}' for name, text in found.items())}.")
    versions = [run.record.get("versions") or {} for members in systems.values() for run in members]
    for package in dict.fromkeys(key for one in versions for key in one):
        numbers = list(dict.fromkeys(str(one.get(package)) for one in versions))
        if len(numbers) > 1:
            notes.append(f"versions of {package} differ: {', '.join(numbers)}.")
    seeds = {name: [run.record["model"].get("training_seed") for run in members] for name, members in systems.items()}
    single = [name for name, own in seeds.items() if len(own) == 1]
    trained = [name for name in single if seeds[name] != [None]]  # a plain model has none
    if trained:
        notes.append(f"one training seed: {', '.join(trained)}; variation between trainings is not measured.")
    for name, own in seeds.items():
        if len({*own}) < len(own):
            notes.append(
                f"{name}: its runs have the training seeds {own}; they should differ in the seed, and in it alone."
            )
        if name in single or base in trained or own == seeds[base]:
            continue
        if len(own) != len(seeds[base]):
            notes.append(f"no seed-level interval for {name}: {len(own)} seeds, and {base} has {len(seeds[base])}.")
        else:
            notes.append(f"seeds paired in the order given: {base} {seeds[base]}, {name} {own}.")
    return notes


def task_notes(
    systems: Mapping[str, Sequence[ScoredRun]], tasks: Sequence[str], settings: Mapping[str, Any]
) -> list[str]:
    """Notes on numbers of items and languages, on metrics, and on the answers."""
    notes = []
    first = next(iter(systems.values()))[0]
    few = [name for name in tasks if len(first.items[name]) < FEW_ITEMS]
    if few:
        notes.append(f"fewer than {FEW_ITEMS} items, so intervals are too narrow: {', '.join(few)}.")
    languages = max(Counter(first.about(name)["benchmark"] for name in tasks).values())
    if languages / (settings["draws"] + 1) >= settings["alpha"]:
        notes.append(f"too few draws for {languages} languages to fall below {settings['alpha']}; raise --draws.")
    meant = [one for one in map(first.about, tasks) if one["language"] not in settings["reference_languages"]]
    metrics = list(dict.fromkeys(str(one["metric"]) for one in meant))
    if len(metrics) > 1:
        notes.append(f"the overall mean mixes metrics: {', '.join(metrics)}.")
    for name in tasks:
        abouts = {system: [run.about(name) for run in members] for system, members in systems.items()}
        shares = {system: [about.get("answered_in") for about in own] for system, own in abouts.items()}
        share = compare_shares(shares, name, first.about(name)["language"])
        notes += [] if share is None else [share]
        for system, own in abouts.items():
            notes += dict.fromkeys(f"{system}: {note}" for about in own for note in task_warnings(name, about))
    return notes
