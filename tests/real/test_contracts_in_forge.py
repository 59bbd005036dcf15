"""The contracts' own tests in Foundry: properties, fuzzing and invariants in Solidity. ``contracts/README.md``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.running import REPOSITORY

pytestmark = pytest.mark.real
LIMIT_S = 1_200


def test_the_contracts_pass_their_tests_in_forge() -> None:
    done = subprocess.run([sys.executable, "contracts/compile.py", "--forge", "test"], cwd=REPOSITORY,
                          capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode == 2 and "npm has no forge" in done.stderr:
        pytest.skip(f"forge: NOT RUN, {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    ran = re.search(r"(\d+) tests passed, 0 failed", re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))
    assert ran is not None, done.stdout[-2_000:]
    print(f"forge: {ran[0]}")
