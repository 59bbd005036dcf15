"""Requirements are pinned by hash and say nothing of where packages come from: that is the machine's business."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.running import REPOSITORY

FILES = sorted(REPOSITORY.glob("requirements*.txt")) + sorted(REPOSITORY.glob("tests/real/clients/requirements.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_line_is_a_pinned_package_or_its_hash(path: Path) -> None:
    text = path.read_text()
    for line in text.splitlines():
        assert re.fullmatch(
            r"|\s*#.*|[A-Za-z0-9._-]+(\[[a-z0-9,._-]+\])?==[^\s;]+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?",
            line), line


@pytest.mark.parametrize("path", [REPOSITORY / "contracts" / "package-lock.json",
                                  REPOSITORY / "tests" / "real" / "clients" / "package-lock.json"],
                         ids=["contracts", "clients"])
def test_npm_locks_name_no_address(path: Path) -> None:
    text = path.read_text()
    assert '"resolved"' not in text
    assert '"integrity"' in text
