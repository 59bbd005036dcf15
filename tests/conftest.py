"""What is drawn: the same at every run of a commit, so that its verdict is; with ``EXPLORE=1`` anew each time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("EXPLORE") else "same")
