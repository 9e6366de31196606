"""Floor 3: measuring a model on public benchmarks, on lm-eval, and saying whether a difference is real."""
