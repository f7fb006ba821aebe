"""Findings to a plan, and a plan to a mended copy."""
