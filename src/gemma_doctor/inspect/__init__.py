"""Inspect: one pass over the bytes, the rules that judge it, and what the user has set aside."""
