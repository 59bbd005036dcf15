"""What starts says nothing but what concerns whoever starts it."""

from __future__ import annotations

import subprocess
import sys


def test_a_process_is_loaded_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", "import gateway.app, gateway.cli"], capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stderr == ""
