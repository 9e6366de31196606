"""Many cells on a machine that has a GPU and no network: bases as files, a plan, workers side by side."""
