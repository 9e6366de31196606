"""Floor 3: a trained model at work: answering prompts, and written out for others to serve."""
