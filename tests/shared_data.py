"""Where the large public test sets are, if they are: beside the checkout in ``../shared/data``."""

from __future__ import annotations

from pathlib import Path

import pytest

_CANDIDATE = Path(__file__).resolve().parents[2] / "shared" / "data"
SHARED: Path | None = _CANDIDATE if _CANDIDATE.is_dir() else None
needs_shared = pytest.mark.skipif(SHARED is None, reason="large public test sets are not beside this checkout")
