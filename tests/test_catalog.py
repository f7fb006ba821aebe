"""The catalog: every rule of both folders, found by id, name and prefix, with a whole page."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor import catalog, doctor
from gemma_doctor.catalog import RULES, AnyRule, find_rule, page, select
from gemma_doctor.errors import UsageError
from gemma_doctor.inspect import registry as scanning
from gemma_doctor.inspect import rules as scan_rules
from gemma_doctor.verify import registry as verifying
from gemma_doctor.verify import rules as verify_rules

CONTRACT = {
    "GD001": ("unreadable-shard", "error"),
    "GD002": ("index-mismatch", "error"),
    "GD003": ("unsafe-path", "error"),
    "GD004": ("missing-format-metadata", "note"),
    "GD101": ("nonfinite-weight", "error"),
    "GD102": ("fp16-weight-overflow", "error"),
    "GD103": ("fp16-weight-near-limit", "warning"),
    "GD104": ("fp16-conv-overflow-risk", "warning"),
    "GD105": ("fp16-underflow", "warning"),
    "GD106": ("all-zero-tensor", "warning"),
    "GD107": ("dead-rows", "note"),
    "GD108": ("outlier-magnitude", "note"),
    "GD109": ("nonpositive-norm-gain", "warning"),
    "GD201": ("zero-shared-kv", "warning"),
    "GD202": ("dead-shared-kv", "note"),
    "GD203": ("dtype-config-mismatch", "warning"),
    "GD204": ("mixed-dtype-module", "warning"),
    "GD205": ("missing-tensor", "error"),
    "GD206": ("unexpected-tensor", "note"),
    "GD207": ("shape-mismatch", "error"),
    "GD208": ("stored-tied-head", "error"),
    "GD209": ("stale-key-layout", "warning"),
    "GD210": ("missing-stem-bias", "warning"),
    "GD301": ("fp16-residual-overflow-risk", "warning"),
    "GD401": ("fp16-forward-overflow", "error"),
    "GD402": ("fp16-backward-overflow", "error"),
    "GD403": ("fp16-silent-saturation", "error"),
    "GD404": ("fp16-output-drift", "warning"),
    "GD405": ("fp16-loss-scale-window", "warning"),
    "GD501": ("gguf-shared-kv-type", "warning"),
    "GD502": ("gguf-vocab-rows", "note"),
    "GD503": ("gguf-per-layer-embedding-type", "warning"),
}
"""Id -> name and gravest severity, as published."""

SECTIONS = ["What it checks", "Why it matters", "Example", "How to mend", "Limits"]

prefixes = st.sampled_from(["ALL", "GD", "GD0", "GD1", "GD10", "GD2", "GD20", *CONTRACT])


def ids(*arguments: list[str]) -> list[str]:
    return [rule.id for rule in select(*arguments)]


def test_rules_are_those_of_the_contract() -> None:
    assert {rule.id: (rule.name, rule.severity) for rule in RULES} == CONTRACT
    assert [rule.id for rule in RULES] == sorted(CONTRACT)


@pytest.mark.parametrize(("room", "own"), [(scan_rules, scanning.RULES), (verify_rules, verifying.RULES)])
def test_rules_are_those_of_the_folder(room: ModuleType, own: tuple[AnyRule, ...]) -> None:
    folder = Path(room.__path__[0])
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert modules == [f"{rule.id.lower()}_{rule.name.replace('-', '_')}" for rule in own]
    assert tuple(import_module(f"{room.__name__}.{module}").RULE for module in modules) == own


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_page_has_a_title_and_all_its_sections_filled(rule: AnyRule) -> None:
    title, *parts = re.split(r"^## (.+)$", page(rule), flags=re.MULTILINE)
    assert title.startswith(f"# {rule.id} {rule.name}: ")
    assert parts[::2] == SECTIONS
    assert all(len(text.strip()) > 20 for text in parts[1::2])


def test_pages_need_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module(RULES[0].check.__module__), "__doc__", None)
    with pytest.raises(UsageError, match="-OO"):
        page(RULES[0])


@pytest.mark.parametrize("word", ["GD101", "gd101", "nonfinite-weight", "Nonfinite-Weight"])
def test_a_rule_is_found_by_id_or_name(word: str) -> None:
    assert find_rule(word).id == "GD101"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("GD110", "did you mean"), ("nonfinite-weights", "nonfinite-weight"), ("xyzzy", "lists all rules")],
)
def test_an_unknown_rule_is_a_usage_error_with_a_hint(word: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        find_rule(word)
    assert repr(word) in str(caught.value)


def test_no_selection_is_everything() -> None:
    assert select() == RULES == select(["ALL"]) == select(["GD"])


def test_the_longest_prefix_wins() -> None:
    assert ids(["GD1"], ["GD10"]) == []
    assert ids(["GD1"], ["GD101", "GD102", "GD103"]) == [rule for rule in CONTRACT if "GD103" < rule < "GD2"]
    assert ids(["GD101"], ["GD1"]) == ["GD101"]
    assert ids([], ["GD0", "GD1"]) == [rule for rule in CONTRACT if rule.startswith(("GD2", "GD3", "GD4", "GD5"))]
    assert ids(["ALL", "GD104"], ["GD"]) == ["GD104"]


def test_ignoring_wins_a_tie() -> None:
    assert ids(["GD101", "GD102"], ["GD101"]) == ["GD102"]


def test_selection_ignores_case() -> None:
    assert ids(["gd2"], ["gd20", "all"]) == ["GD210"]


@given(st.lists(prefixes), st.lists(prefixes))
def test_a_selection_obeys_each_rules_longest_prefix(chosen: list[str], ignored: list[str]) -> None:
    def longest(words: list[str], rule: AnyRule) -> int:
        return max((len(word) for word in words if word != "ALL" and rule.id.startswith(word)), default=-1)

    for rule in RULES:
        on = max(longest(chosen, rule), 0 if "ALL" in chosen or not chosen else -1)
        off = max(longest(ignored, rule), 0 if "ALL" in ignored else -1)
        assert (rule in select(chosen, ignored)) is (on > off)


@pytest.mark.parametrize("word", ["", "GD9", "GD1011", "nonsense", "GD1*"])
@pytest.mark.parametrize("where", ["chosen", "ignored"])
def test_an_unknown_prefix_is_a_usage_error(word: str, where: str) -> None:
    with pytest.raises(UsageError, match="no rule has the id or prefix"):
        select(**{where: [word]})


def test_an_unknown_prefix_gets_a_proposal() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*GD101"):
        catalog.select(["GD1O1"])


def test_a_selection_without_a_rule_of_the_command_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="GD4 selects no rule from GD001"):
        doctor.scan("nowhere", doctor.Options(select=("GD4",)))
