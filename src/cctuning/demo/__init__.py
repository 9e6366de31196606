"""The demo: a small base made on the spot, tuned, scored and merged, without a network."""
