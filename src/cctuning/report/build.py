"""Build the report: read runs and evaluations, and write the page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from cctuning import __version__
from cctuning.errors import UserError
from cctuning.files import check_new_file, write_atomically
from cctuning.model.loading import MODEL_FOLDER
from cctuning.report.page import document, listed
from cctuning.report.results_section import examples_section, read_evaluations, results_section
from cctuning.report.runs import read_runs
from cctuning.report.training_section import data_section, settings_section, training_section


def base_name(base: str) -> str:
    """The last part of a base's path; of the model of a run, with the run's name."""
    path = Path(base)
    return f"{path.parent.name}/{path.name}" if path.name == MODEL_FOLDER else path.name


def build(runs: Sequence[str], output: Path, *, evaluations: Sequence[str] = (), baseline: str | None = None) -> None:
    """Write the report on `runs` to `output`. No model is loaded.

    Args:
        runs, evaluations: `NAME=DIR` or `DIR`.
        baseline: name of an evaluation; None: see `compare`.
    """
    check_new_file(output)
    read = read_runs(runs)
    languages = {str(run.record["reference_language"]) for run in read}
    if len(languages) > 1:
        raise UserError(f"runs: reference languages differ ({', '.join(sorted(languages))}); report them separately.")
    if baseline is not None and not evaluations:
        raise UserError(f"--baseline {baseline}: the baseline is one of the evaluations; name them with --evaluation.")
    evaluated = read_evaluations(evaluations, baseline, read)
    sections = [results_section(read, evaluated), training_section(read), data_section(read)]
    sections += [*([examples_section(evaluated)] if evaluated else []), settings_section(read)]
    names = listed([run.name for run in read])
    lead = f"{names}, trained from {listed(list(dict.fromkeys(base_name(run.base) for run in read)))}."
    footer = f"Written on {date.today().isoformat()} by cc-tuning {__version__}."
    write_atomically(output, document(f"Report on {names}", lead, sections, footer))
