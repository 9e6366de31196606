"""Build the report: read runs and evaluations, analyse the models, and write the page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from cctuning import __version__
from cctuning.data import Source
from cctuning.errors import UserError
from cctuning.files import write_atomically
from cctuning.languages import language_name
from cctuning.report.connection_sections import gate_section, similarity_section, transform_section
from cctuning.report.examples_section import examples_section
from cctuning.report.formatting import listed
from cctuning.report.model_analysis import Findings, Options, analyse, read_rows
from cctuning.report.page import Section, document, paragraph
from cctuning.report.results_section import read_evaluations, results_section
from cctuning.report.runs import Run, read_runs
from cctuning.report.training_section import data_section, settings_section, training_section


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
    """Write the report on `runs` to `output`.

    Args:
        runs, evaluations: `NAME=DIR` or `DIR`.
        data: rows to analyse the connection on; None for the training rows of the first run.
        baseline: name or directory of an evaluation; None for the first.
        analysis: load the models; otherwise use records and evaluations alone.

    Returns:
        Notes on what could not be shown.

    Raises:
        UserError: bad input, or an existing output. A model or rows that cannot be loaded are an error if `data` or
            examples were asked for, otherwise a note.
    """
    options = options or Options()
    if output.exists():
        raise UserError(f"--output {output}: exists already; name a new file.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no directory {output.parent}; create it first.")
    read = read_runs(runs)
    languages = {str(run.record["reference_language"]) for run in read}
    if len(languages) > 1:
        raise UserError(f"runs: reference languages differ ({', '.join(sorted(languages))}); report them separately.")
    reference = languages.pop()
    evaluated = read_evaluations(evaluations, baseline, read)
    notes: list[str] = []
    found: Findings | None = None
    if analysis:
        try:
            found = analyse(read, read_rows(read, data, options.rows), options)
        except UserError as error:
            if data is not None or options.examples:
                raise
            notes.append(f"the models were not analysed: {error}")
    sections = [results_section(read, evaluated), *_connection_sections(read, found, language_name(reference), notes)]
    sections += [training_section(read), data_section(read, found)]
    sections += [examples_section(found, evaluated, reference), settings_section(read)]
    names = listed([run.name for run in read])
    lead = f"{names}, trained from {listed(list(dict.fromkeys(Path(run.base).name for run in read)))}."
    footer = f"Written on {date.today().isoformat()} by cc-tuning {__version__}."
    write_atomically(output, document(f"Report on {names}", lead, sections, footer))
    return notes


def _connection_sections(
    runs: Sequence[Run], found: Findings | None, language: str, notes: list[str]
) -> list[Section]:
    if found is not None:
        return [section(runs, found, language) for section in (gate_section, transform_section, similarity_section)]
    if not notes and not any(run.connection.connection in ("gated", "adaptive") for run in runs):
        return []  # an alignment leaves nothing in the model
    why = f"{notes[0][0].upper()}{notes[0][1:]}" if notes else "The models were not analysed (--no_analysis)."
    return [Section("gate", f"Where {language} activations are used").add(paragraph(why, "note"))]
