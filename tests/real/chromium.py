"""The system's own Chromium, which Playwright drives."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def chromium() -> str:
    """Its path; installed by the machine's package client where that is possible. Skips where there is none."""
    found = _on_path()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=False, capture_output=True, timeout=300, env=quiet)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "chromium"], check=False,
                       capture_output=True, timeout=900, env=quiet)
        found = _on_path()
    if found is None:
        pytest.skip("Chromium: NOT RUN, no `chromium` on PATH and it cannot be installed")
    return found


def _on_path() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
