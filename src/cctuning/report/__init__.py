"""Floor 4: one self-contained HTML page out of run directories, held-out rows and evaluation results."""
