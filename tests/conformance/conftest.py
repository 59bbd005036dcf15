"""Browsers before the gateways of the conformance tests, each of which makes its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.journeys.browser import Browser
from tests.journeys.gateways import open_browser
from tests.journeys.hospital import Hospital

__all__ = ["browser", "open_browser"]


@pytest.fixture
def browser(hospital: Hospital, open_browser: Callable[[], Browser]) -> Browser:
    """A new patient's own, signed in."""
    return open_browser().sign_in(f"Patient/{hospital.new_patient()}")
