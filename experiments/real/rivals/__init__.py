"""Methods of other authors, each in its own file, as published as far as possible, on the public API."""
