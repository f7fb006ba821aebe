"""All rules, and how a user names some of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.errors import UsageError
from gemma_doctor.inspect.rule import Rule
from gemma_doctor.inspect.rules import (
    gd001_unreadable_shard,
    gd002_index_mismatch,
    gd003_unsafe_path,
    gd004_missing_format_metadata,
    gd101_nonfinite_weight,
    gd102_fp16_weight_overflow,
    gd103_fp16_weight_near_limit,
    gd104_fp16_conv_overflow_risk,
    gd105_fp16_underflow,
    gd106_all_zero_tensor,
    gd107_dead_rows,
    gd108_outlier_magnitude,
    gd201_zero_shared_kv,
    gd202_dead_shared_kv,
    gd203_dtype_config_mismatch,
    gd204_mixed_dtype_module,
    gd205_missing_tensor,
    gd206_unexpected_tensor,
    gd207_shape_mismatch,
    gd208_stored_tied_head,
    gd209_stale_key_layout,
    gd210_missing_stem_bias,
)

__all__ = ["RULES", "find_rule", "page", "select"]

RULES: tuple[Rule, ...] = (
    gd001_unreadable_shard.RULE,
    gd002_index_mismatch.RULE,
    gd003_unsafe_path.RULE,
    gd004_missing_format_metadata.RULE,
    gd101_nonfinite_weight.RULE,
    gd102_fp16_weight_overflow.RULE,
    gd103_fp16_weight_near_limit.RULE,
    gd104_fp16_conv_overflow_risk.RULE,
    gd105_fp16_underflow.RULE,
    gd106_all_zero_tensor.RULE,
    gd107_dead_rows.RULE,
    gd108_outlier_magnitude.RULE,
    gd201_zero_shared_kv.RULE,
    gd202_dead_shared_kv.RULE,
    gd203_dtype_config_mismatch.RULE,
    gd204_mixed_dtype_module.RULE,
    gd205_missing_tensor.RULE,
    gd206_unexpected_tensor.RULE,
    gd207_shape_mismatch.RULE,
    gd208_stored_tied_head.RULE,
    gd209_stale_key_layout.RULE,
    gd210_missing_stem_bias.RULE,
)
"""Every rule, by id. Literal on purpose: nothing is registered by being imported."""

_ALL = "ALL"  # as in ruff: the prefix of every rule


def find_rule(id_or_name: str) -> Rule:
    """The rule of that id (any case) or name.

    Raises:
        UsageError: If there is none; the message proposes the closest one.
    """
    for rule in RULES:
        if id_or_name.upper() == rule.id or id_or_name.lower() == rule.name:
            return rule
    known = [word for rule in RULES for word in (rule.id, rule.name)]
    raise UsageError(f"no rule {quoted(id_or_name)}{_did_you_mean(id_or_name, known)}")


def select(chosen: Sequence[str] = (), ignored: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules that are switched on, in order.

    As in ruff, each rule obeys the longest prefix that matches it: ``select(["GD1"], ["GD10"])`` is empty but for
    what a longer prefix selects, and ``select(["GD101"], ["GD1"])`` is GD101. Ignoring wins a tie.

    Args:
        chosen: Ids or prefixes of ids, in any case; ``"ALL"`` is every rule, and so is an empty list.
        ignored: The same, switched off.

    Raises:
        UsageError: If a prefix matches no rule; the message proposes the closest ones.
    """
    on, off = _prefixes(chosen or [_ALL]), _prefixes(ignored)
    return tuple(rule for rule in RULES if _longest(on, rule) > _longest(off, rule))


def page(rule: Rule) -> str:
    """The rule's page in Markdown: the docstring of its module, its first line made a title.

    Raises:
        UsageError: If Python runs with ``-OO``, which removes docstrings.
    """
    text = sys.modules[rule.check.__module__].__doc__
    if text is None:
        raise UsageError("the pages of the rules are docstrings, which python -OO removes: run without -OO")
    return f"# {text.strip()}\n"


def _prefixes(words: Sequence[str]) -> list[str]:
    """The selectors as prefixes of ids; the empty prefix for ALL."""
    prefixes = ["" if word.upper() == _ALL else word.upper() for word in words]
    for word, prefix in zip(words, prefixes, strict=True):
        if not word or not any(rule.id.startswith(prefix) for rule in RULES):
            known = [_ALL, *(rule.id for rule in RULES), *sorted({rule.id[:3] for rule in RULES})]
            raise UsageError(f"no rule has the id or prefix {quoted(word)}{_did_you_mean(word.upper(), known)}")
    return prefixes


def _longest(prefixes: Iterable[str], rule: Rule) -> int:
    """Length of the longest prefix that matches the rule; -1 where none does."""
    return max((len(prefix) for prefix in prefixes if rule.id.startswith(prefix)), default=-1)


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "; `gemma-doctor rule` lists all rules"
