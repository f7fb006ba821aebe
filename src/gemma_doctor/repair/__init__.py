"""Findings to a plan, and a plan to a mended copy.

To be read in this order: ``passes/`` with what they go on (``evidence/``), ``planning/``, the plan on paper
(``fingerprint``, ``reading``, ``documents``, ``outcome``), what edits do (``elements/``), and ``applying/``.
"""
