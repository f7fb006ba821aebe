"""Which rules judge, and which of their findings count: the same for a scan and for a run."""

from __future__ import annotations

from collections.abc import Iterable

from gemma_doctor import catalog
from gemma_doctor.catalog import AnyRule
from gemma_doctor.checkpoint import Checkpoint, sha256
from gemma_doctor.doctor.options import Options
from gemma_doctor.errors import UsageError
from gemma_doctor.inspect.suppression import SetAside, set_aside
from gemma_doctor.records import Finding

__all__ = ["chosen", "counted"]


def chosen(own: tuple[AnyRule, ...], options: Options) -> tuple[AnyRule, ...]:
    """The rules of one command that are switched on.

    Args:
        own: All rules of the command.
        options: What the user asks for.

    Raises:
        UsageError: If the user asks for rules, and for none of these.
    """
    switched_on = catalog.select(options.select, options.ignore)
    rules = tuple(rule for rule in own if rule in switched_on)
    if switched_on and not rules:
        wanted = ", ".join(options.select)
        raise UsageError(f"{wanted} selects no rule from {own[0].id} to {own[-1].id}, which are those of this command")
    return rules


def counted(
    findings: Iterable[Finding], rules: tuple[AnyRule, ...], options: Options, checkpoint: Checkpoint
) -> SetAside:
    """The findings that count, those that the user has set aside, and remarks on entries without a finding.

    Args:
        findings: What the rules found.
        rules: The rules that were applied.
        options: What was selected, and what the user has set aside.
        checkpoint: Where the bytes of a tensor with an allow entry are.
    """
    ids = {rule.id for rule in rules}
    return set_aside(
        findings,
        options.suppressions,
        content_hash=lambda name: sha256(checkpoint, checkpoint.tensors[name]),
        judged=lambda rule, tensor: rule in ids and (tensor is None or options.chooses(tensor)),
    )
