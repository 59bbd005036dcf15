"""Gateways of this process for the journeys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.hospital import Hospital


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One gateway for every test that does not need its own settings: tests make patients and codes of their own."""
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
