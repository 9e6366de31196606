"""Made-up worlds in which everything is known, to compare recipes on; on the public API, not installed."""
