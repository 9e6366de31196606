"""Build one self-contained HTML page from runs, held-out rows and evaluation results."""
