"""What the real suite installs, once a run; and in the last lines what of it was not run, and why: a green summary must
not hide it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from contracts.compile import node_command

CLIENTS = Path(__file__).with_name("clients")
INSTALL_S = 600


@pytest.fixture(scope="session")
def node() -> str:
    """Node's path. What ``clients/package-lock.json`` names stands in ``clients/node_modules``."""
    path, npm = node_command()
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(path).parent), os.environ.get("PATH", "")])}
    subprocess.run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=CLIENTS, env=environment,
                   check=True, capture_output=True, timeout=INSTALL_S)
    return path


@pytest.fixture(scope="session")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a Python that has what ``clients/requirements.txt`` names, whose dependencies are not ours."""
    home = tmp_path_factory.mktemp("foreign") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=INSTALL_S)
    python = str(home / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--require-hashes", "-r",
                    str(CLIENTS / "requirements.txt")], check=True, timeout=INSTALL_S)
    return python


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
