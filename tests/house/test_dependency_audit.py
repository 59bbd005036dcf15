"""What pip-audit's report means: a fix that is there fails, a database that was not asked is not a pass."""

from __future__ import annotations

from typing import Any

from tests.audit import NOT_RUN, PASSED, VULNERABLE, verdict
from tests.running import REPOSITORY


def package(name: str, *vulns: tuple[str, list[str]], **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", **more,
            "vulns": [{"id": id_, "fix_versions": fixes} for id_, fixes in vulns]}


def test_nothing_known_passes_and_says_how_many() -> None:
    assert verdict({"dependencies": [package("a"), package("b")]}) == (
        PASSED, ["passed: 2 packages, nothing known that has a fix"])


def test_a_vulnerability_with_a_fix_fails_even_where_others_were_not_answered() -> None:
    code, lines = verdict({"dependencies": [package("a", ("CVE-1", ["1.1"])), {"name": "b", "skip_reason": "x"}]})
    assert code == VULNERABLE
    assert lines == ["a 1.0: CVE-1, fixed in 1.1: pip-compile -P a"]


def test_one_without_a_fix_is_told_and_does_not_fail() -> None:
    code, lines = verdict({"dependencies": [package("a", ("CVE-1", []))]})
    assert code == PASSED
    assert "no fix yet" in lines[0]


def test_what_was_not_answered_is_not_a_pass() -> None:
    skipped = {"name": "b", "skip_reason": "x"}
    for found in ("no network", {"dependencies": []}, {"dependencies": [package("a"), skipped]}):
        code, lines = verdict(found)
        assert code == NOT_RUN
        assert "NOT RUN" in lines[-1]


def test_ci_runs_it_and_says_so_where_it_could_not() -> None:
    assert "make audit AUDIT=--or-say-so" in (REPOSITORY / ".ci" / "run").read_text()
    assert "tests.audit $(AUDIT)" in (REPOSITORY / "Makefile").read_text()
