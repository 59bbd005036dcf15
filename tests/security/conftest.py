"""Gateways for the attacks: in this process, and as real processes behind a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.hospital import Hospital
from tests.running import Gateway


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One gateway for every test that does not need its own settings."""
    made = Hospital(tmp_path_factory.mktemp("hospital"))
    yield made
    made.close()


@pytest.fixture
def hospital_with(tmp_path: Path) -> Iterator[Callable[..., Hospital]]:
    """Makes a gateway with the given settings."""
    made: list[Hospital] = []

    def make(**settings: str) -> Hospital:
        made.append(Hospital(tmp_path / str(len(made)), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A running gateway that waits two seconds for who is slow, and logs everything."""
    running = Gateway(tmp_path_factory.mktemp("impatient"), workers="1", slow_timeout_s="2", slow_bytes_per_s="100",
                      max_connections="30", log_level="debug")
    running.start()
    yield running
    running.stop()
