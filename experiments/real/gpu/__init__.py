"""Run many cells on a machine with a GPU and no network."""
