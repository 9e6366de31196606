"""From arguments to the page: read everything, look into the models, put the sections in their order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from cctuning import __version__
from cctuning.data import Source
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.languages import language_name
from cctuning.report.connection_sections import borrowing, meeting_section, transforming
from cctuning.report.examples_section import examples
from cctuning.report.formatting import listed
from cctuning.report.model_analysis import Findings, Options, look, read_rows
from cctuning.report.page import Section, document, paragraph
from cctuning.report.results_section import answer, read_evaluations
from cctuning.report.runs import Run, read_runs
from cctuning.report.training_section import data as data_section
from cctuning.report.training_section import settings, training


def build(
    runs: Sequence[str],
    output: Path,
    *,
    data: Source | None = None,
    evaluations: Sequence[str] = (),
    baseline: str | None = None,
    analysis: bool = True,
    options: Options | None = None,
) -> list[str]:
    """Write the report of `runs` to `output`.

    Args:
        runs, evaluations: `NAME=DIR` or `DIR`.
        data: rows to look at the connection with; None: the first run's own, where they are still there.
        baseline: of the evaluations.
        analysis: whether models are loaded at all.

    Returns:
        Notes a person should see: what could not be shown, and why.

    Raises:
        UserError: bad input, or an output that exists already. Where rows or examples were asked for, also whatever
            keeps them from being shown; else that is a note.
    """
    options = options or Options()
    if output.exists():
        raise UserError(f"--output {output}: exists already; name a file that does not.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no directory {output.parent}; make it first.")
    read = read_runs(runs)
    languages = {str(run.record["reference_language"]) for run in read}
    if len(languages) > 1:
        raise UserError(f"runs: their reference languages differ ({', '.join(sorted(languages))}); report them apart.")
    reference = languages.pop()
    evaluated = read_evaluations(evaluations, baseline, read)
    notes: list[str] = []
    found: Findings | None = None
    if analysis:
        try:
            found = look(read, read_rows(read, data, options.rows), options)
        except UserError as error:
            if data is not None or options.examples:
                raise
            notes.append(f"the models were not looked into: {error}")
    sections = [answer(read, evaluated), *_inside(read, found, language_name(reference), notes)]
    sections += [training(read), data_section(read, found), examples(found, evaluated, reference), settings(read)]
    names = listed([run.name for run in read])
    lead = f"{names}, tuned from {listed(list(dict.fromkeys(Path(run.base).name for run in read)))}."
    footer = f"Written on {date.today().isoformat()} by cc-tuning {__version__}."
    write_atomically(output, document(f"Report on {names}", lead, sections, footer))
    return notes


def _inside(runs: Sequence[Run], found: Findings | None, language: str, notes: list[str]) -> list[Section]:
    if found is None:
        why = f"{notes[0][0].upper()}{notes[0][1:]}" if notes else "The models were not looked into (--no_analysis)."
        return [Section("borrowed", f"Where {language} is borrowed").add(paragraph(why, "note"))]
    return [
        borrowing(runs, found, language),
        transforming(runs, found, language),
        meeting_section(runs, found, language),
    ]
