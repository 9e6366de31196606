"""Floor 2, beside `data`: finding or making the English parallel of every row, checked and documented.

`run.pair` does it; `ways.py` has where parallels come from, `inspection.py` and `ledger.py` what is held against them,
`translation/` the engines.
"""
