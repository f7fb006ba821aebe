"""Loaded models made safe in float16: see :func:`.guarding.guard`. Needs torch."""
