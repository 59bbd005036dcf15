"""The whole story on the committed records: what ``make demo`` tells must hold. Invariants 1, 2, 4, 6, 8, 11."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import demo
from tests.running import Gateway


def test_the_demonstration_tells_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MORE_PATIENTS", 0)
    gateway = Gateway(tmp_path)
    try:
        demo.story(gateway, tmp_path)
    finally:
        gateway.stop()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines if line[0].isdigit()] == [str(n) for n in range(1, 11)]
