"""CSV, TSV and semicolons as spreadsheets, pandas, Tatoeba and OPUS write them."""

from __future__ import annotations

import csv

import pytest

from cctuning import UserError
from cctuning.data import Source, load_parallel, load_rows

HEAD = ["prompt", "response", "lang", "prompt_en"]


def read(path, **options):
    dataset, report = load_rows([Source(str(path), **options)])
    return [tuple(row[name] for name in ("prompt", "response", "reference")) for row in dataset], report


def written(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_in_tsv_a_quotation_mark_is_a_letter(tmp_path):
    swallow = ['Mwanzo?\tNdiyo.\tsw\t"Start?', "Katikati?\tHapana.\tsw\tMiddle?", 'Mwisho?\tSawa.\tsw\tEnd?"']
    lead = ['"Ndiyo, alisema mama.\tSawa.\tsw\t"Yes, said the mother.', '"Hapana" alisema.\tSawa.\tsw\t"No" he said.']
    whole = ['"Nenda!"\tSawa.\tsw\t"Go!"', "Rudi!\tSawa.\tsw\tCome back!"]
    for lines in (swallow, lead, whole, swallow + lead + whole):
        rows, report = read(written(tmp_path / "rows.tsv", ["\t".join(HEAD), *lines]))
        assert [(row[0], row[1], "sw", row[2]) for row in rows] == [tuple(line.split("\t")) for line in lines]
        assert not report.skipped


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_programs_write_is_read_back(tmp_path, name, delimiter, quoting):
    """Cells with delimiters, marks and line breaks, whatever the delimiter and whatever the file is called."""
    cells = [
        ['Alisema "ndiyo", sawa?', "Ndiyo;\nhapana.", "sw", 'He said "yes", right?'],
        ["Moja\tmbili|tatu, nne; tano?", "Sita.", "sw", "One\ttwo|three, four; five?"],
        ["Mwisho?", '"Sawa"', "sw", "The end?"],
    ]
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows([HEAD, *cells])
    rows, _ = read(tmp_path / name)
    assert rows == [(cell[0], cell[1], cell[3]) for cell in cells]


def test_quoted_cells_without_line_breaks_in_tsv(tmp_path):
    cells = [['Alisema "ndiyo"?', "Sawa.", "sw", 'He said "yes"?'], ["Rudi!", "Sawa.", "sw", "Come back!"]]
    with (tmp_path / "rows.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([HEAD, *cells])
    assert '"Alisema ""ndiyo""?"' in (tmp_path / "rows.tsv").read_text()
    assert read(tmp_path / "rows.tsv")[0] == [(cell[0], cell[1], cell[3]) for cell in cells]


def test_excels_first_line_names_the_delimiter(tmp_path):
    path = written(
        tmp_path / "rows.csv", ["sep=;", ";".join(HEAD), "Habari, dunia?;Nzuri.;sw;Hello, world?", "A;;sw;"]
    )
    with pytest.raises(UserError, match=r"rows.csv:4: prompt_en"):
        read(path)
    rows, report = read(path, bad_rows="skip")
    assert rows == [("Habari, dunia?", "Nzuri.", "Hello, world?")] and report.skipped[0].origin == f"{path}:4"


def test_a_row_that_swallows_rows_is_bad(tmp_path):
    """Beside a cell that needs its quotes, so that the file as a whole is one that quotes."""
    lines = ['"a, b?",c,sw,d', 'Mwanzo?,Ndiyo.,sw,"Start?', "Katikati?,Hapana.,sw,Middle?", 'Mwisho?,Sawa.,sw,End?"']
    path = written(tmp_path / "rows.csv", [",".join(HEAD), *lines])
    with pytest.raises(UserError, match=r"rows.csv:3: line: a quotation mark joins 3 lines into one row"):
        read(path)
    rows, report = read(path, bad_rows="skip")
    assert rows == [("a, b?", "c", "d")] and len(report.skipped) == 1


def test_a_bad_line_beside_marks_that_are_letters(tmp_path):
    """One line with too few cells: the marks stay letters, for rows and for parallel text."""
    path = tmp_path / "pairs.tsv"
    lines = ["text\ttext_en\tlang", '"Ndiyo" alisema.\t"Yes" he said.\tsw', "Moja\tOne", '"Mbili\tTwo"\tsw']
    path.write_text("".join(line + "\n" for line in lines))
    pairs, report = load_parallel([{"path": str(path), "bad_rows": "skip"}])
    assert pairs["text"] == ['"Ndiyo" alisema.', '"Mbili']
    assert report.skipped[0].reason.startswith("2 cells, expected 3")
    path.write_text(path.read_text().replace("text", "prompt"))
    rows, _ = load_rows([{"path": str(path), "bad_rows": "skip"}])
    assert rows["prompt"] == ['"Ndiyo" alisema.', '"Mbili']
