"""Gateways for the attacks: in this process, and as real processes behind a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.gateways import hospital, hospital_with
from tests.running import Gateway

__all__ = ["hospital", "hospital_with"]


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A running gateway that waits two seconds for who is slow, and logs everything."""
    running = Gateway(tmp_path_factory.mktemp("impatient"), workers="1", slow_timeout_s="2", slow_bytes_per_s="100",
                      max_connections="30", log_level="debug")
    running.start()
    yield running
    running.stop()
