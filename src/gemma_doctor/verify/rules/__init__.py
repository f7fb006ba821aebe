"""One rule, one file; the module's docstring is the rule's page. None of them needs torch."""
