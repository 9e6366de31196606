"""Made-up worlds in which everything is known: recipes searched alike, on the public API. Not installed."""
