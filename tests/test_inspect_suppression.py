"""Findings that the user has set aside: what still counts, what expires, what is only remarked on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NoReturn

from hypothesis import given
from hypothesis import strategies as st
from sample_reports import finding

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.inspect.suppression import Allow, Baseline, Ignore, Known, Suppressions, set_aside
from gemma_doctor.records import Finding

NEW, OLD = "a" * 64, "b" * 64


def no_hash(tensor: str) -> NoReturn:
    raise AssertionError(f"{tensor} was hashed without need")


def known(*findings: Finding) -> Suppressions:
    return Suppressions(baseline=Baseline(tuple(map(Known.of, findings)), "known.json"))


def test_nothing_is_set_aside_and_nothing_hashed_without_suppressions() -> None:
    findings = (finding("GD101"), finding("GD102", tensor=None))
    assert set_aside(findings, Suppressions(), no_hash).kept == findings


def test_a_glob_sets_aside_its_rules_on_its_tensors_only() -> None:
    ignore = Suppressions(per_tensor_ignores=(Ignore("*.bias", ("GD106", "GD102"), "pyproject.toml"),))
    hit = finding("GD106", tensor="layers.0.bias")
    others = (finding("GD106", tensor="layers.0.weight"), finding("GD101", tensor="layers.0.bias"))
    result = set_aside((hit, *others), ignore, no_hash)
    assert result.kept == others
    assert [(item.finding, item.by, item.origin) for item in result.suppressed] == [
        (hit, "per-tensor-ignores", "pyproject.toml")
    ]


def test_a_glob_is_case_sensitive_and_spares_findings_without_a_tensor() -> None:
    ignore = Suppressions(per_tensor_ignores=(Ignore("*", ("GD002",)), Ignore("A.*", ("GD101",))))
    findings = (finding("GD002", tensor=None), finding("GD101", tensor="a.weight"))
    assert set_aside(findings, ignore, no_hash).kept == findings


def test_an_allow_entry_accepts_one_rule_on_one_tensor_with_these_bytes() -> None:
    allow = Suppressions(allow=(Allow("GD102", "a.weight", NEW, "looked at it", "gemma-doctor.toml"),))
    hit, other_rule, other_tensor = finding(), finding("GD101"), finding(tensor="b.weight")
    result = set_aside((hit, other_rule, other_tensor), allow, {"a.weight": NEW}.__getitem__)
    assert result.kept == (other_rule, other_tensor)
    (aside,) = result.suppressed
    assert (aside.finding, aside.by, aside.reason, aside.origin) == (hit, "allow", "looked at it", "gemma-doctor.toml")
    assert not result.remarks


def test_an_allow_entry_expires_with_the_bytes_and_says_how_to_renew_it() -> None:
    allow = Suppressions(allow=(Allow("GD102", "a.weight", OLD, "looked at it", "gemma-doctor.toml"),))
    result = set_aside([finding()], allow, {"a.weight": NEW}.__getitem__)
    (kept,) = result.kept
    assert not result.suppressed
    assert kept.message.startswith(finding().message)
    assert "in gemma-doctor.toml" in kept.message
    assert OLD[:12] in kept.message
    assert f"set its sha256 to {NEW}" in kept.message
    assert kept.evidence == {**finding().evidence, "allowed": OLD, "sha256": NEW}
    assert replace(kept, message=finding().message, evidence=finding().evidence) == finding()


def test_a_renewed_entry_wins_over_an_old_one_beside_it() -> None:
    allow = tuple(Allow("GD102", "a.weight", digest, digest[0]) for digest in (OLD, NEW))
    result = set_aside([finding()], Suppressions(allow=allow), {"a.weight": NEW}.__getitem__)
    assert [item.reason for item in result.suppressed] == [NEW[0]]


def test_a_tensor_is_hashed_once_for_all_its_rules() -> None:
    calls: list[str] = []

    def content_hash(tensor: str) -> str:
        calls.append(tensor)
        return NEW

    allow = tuple(Allow(rule, "a.weight", NEW, "fine") for rule in ("GD101", "GD102", "GD103"))
    set_aside([finding("GD101"), finding("GD102")], Suppressions(allow=allow), content_hash)
    assert calls == ["a.weight"]


def test_an_allow_entry_without_a_finding_is_remarked_on() -> None:
    allow = Suppressions(allow=(Allow("GD102", "a.weight", NEW, "fine", "gemma-doctor.toml"),))
    (remark,) = set_aside([], allow, no_hash).remarks
    assert remark == "1 allow entry in gemma-doctor.toml without a finding: GD102 a.weight; remove what is mended"


def test_a_baseline_sets_aside_what_it_lists_and_only_that() -> None:
    old, new = finding("GD101"), finding("GD102")
    result = set_aside([old, new], known(old), no_hash)
    assert result.kept == (new,)
    assert [(item.finding, item.by, item.origin) for item in result.suppressed] == [(old, "baseline", "known.json")]


def test_a_baseline_entry_covers_one_finding() -> None:
    twice = [finding("GD002", tensor=None, message=text) for text in ("first", "second")]
    result = set_aside(twice, known(twice[0]), no_hash)
    assert result.kept == (twice[1],)


def test_a_note_that_became_an_error_is_new() -> None:
    note, error = finding("GD208", "note"), finding("GD208", "error")
    result = set_aside([error], known(note), no_hash)
    assert result.kept == (error,)
    assert "GD208 a.weight" in result.remarks[0]


def test_baseline_entries_that_are_gone_are_remarked_on_in_few_words() -> None:
    entries = [finding("GD102", tensor=f"layers.{index}.weight") for index in range(5)]
    (remark,) = set_aside(entries[:1], known(*entries), no_hash).remarks
    assert remark == (
        "4 baseline entries in known.json no longer found: GD102 layers.1.weight, GD102 layers.2.weight, "
        "GD102 layers.3.weight and 1 more; renew the file with --write-baseline"
    )


def test_entries_that_this_scan_could_not_find_are_not_called_out_of_date() -> None:
    everything = Suppressions(
        allow=(Allow("GD102", "a.weight", NEW, "fine"),), baseline=Baseline((Known.of(finding("GD101")),))
    )
    assert len(set_aside([], everything, no_hash).remarks) == 2
    assert not set_aside([], everything, no_hash, lambda _rule, tensor: tensor != "a.weight").remarks


findings = st.builds(
    finding, st.sampled_from(["GD101", "GD102"]), st.sampled_from(SEVERITIES), st.sampled_from(["a", "b", None])
)


@given(
    st.lists(findings, max_size=8),
    st.lists(findings, max_size=4),
    st.lists(
        st.builds(Allow, st.just("GD101"), st.just("a"), st.sampled_from([OLD, NEW]), st.just("fine")), max_size=2
    ),
)
def test_every_finding_comes_out_once_in_order(found: list[Finding], base: list[Finding], allow: list[Allow]) -> None:
    suppressions = Suppressions((Ignore("b*", ("GD102",)),), tuple(allow), known(*base).baseline)
    result = set_aside(found, suppressions, lambda _tensor: NEW)
    out = [*map(Known.of, result.kept), *(Known.of(item.finding) for item in result.suppressed)]
    assert Counter(out) == Counter(map(Known.of, found))
    positions = iter(map(Known.of, found))
    assert all(Known.of(kept) in positions for kept in result.kept)  # a subsequence
    baselined = Counter(Known.of(item.finding) for item in result.suppressed if item.by == "baseline")
    assert baselined <= Counter(map(Known.of, base))
