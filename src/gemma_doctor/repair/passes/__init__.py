"""The passes: one a file, whose docstring is its page."""
