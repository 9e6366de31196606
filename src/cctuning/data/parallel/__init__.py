"""Read parallel text: pairs of a text and its counterpart in the reference language, in any published format."""
