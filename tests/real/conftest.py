"""Says in the last lines what of the real suite was not run, and why: a green summary must not hide it."""

from __future__ import annotations

import pytest
from _pytest.terminal import TerminalReporter


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """After everything else, where the real suite was asked for."""
    if "not real" in config.option.markexpr:
        return
    reasons: dict[str, int] = {}
    for report in terminalreporter.getreports("skipped"):
        if "tests/real/" in report.nodeid and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            reasons[reason] = reasons.get(reason, 0) + 1
    if not reasons:
        terminalreporter.write_line("real components: everything was run")
        return
    terminalreporter.section("real components: NOT RUN", yellow=True)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{reason} ({count} {'file or test' if count == 1 else 'files or tests'})")
