"""Methods of others, each in its own file, in its authors' form as far as it can be read, on the public API."""
