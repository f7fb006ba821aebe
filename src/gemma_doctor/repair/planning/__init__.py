"""Findings to a plan. To be read in this order: registry, merging, planner."""
