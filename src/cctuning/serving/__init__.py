"""Use a trained model: generate answers, and export it for other software."""
