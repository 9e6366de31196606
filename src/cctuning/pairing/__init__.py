"""Find, join or make the parallel of every row, check the rows and write them with a data card.

`run.py` runs `cctuning pair`: `assemble.py` reads the sources and has them translated, `row_checks.py` and
`corpus_checks.py` check rows, `output.py` writes. `selecting.py`, `names.py` and `mining.py` are the
subcommands; `translation/` holds the translation engines.
"""
