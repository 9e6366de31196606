"""Score models with lm-eval, and test whether their results differ."""
