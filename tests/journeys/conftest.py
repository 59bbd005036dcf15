"""Gateways of this process for the journeys, and a receiver of what they send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.gateways import browser, hospital, hospital_with, open_browser
from tests.journeys.receiver import Receiver

__all__ = ["browser", "hospital", "hospital_with", "open_browser"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()
