"""Fixtures that make gateways of this process and browsers before them; a folder's conftest takes those it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.browser import Browser
from tests.journeys.hospital import Hospital


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One gateway for every test of a file that does not need its own settings: they make patients and codes of their
    own."""
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


@pytest.fixture
def open_browser(hospital: Hospital) -> Iterator[Callable[[], Browser]]:
    """Opens browsers, each a person of its own."""
    made: list[Browser] = []

    def one() -> Browser:
        made.append(Browser(hospital))
        return made[-1]

    yield one
    for browser in made:
        browser.close()


@pytest.fixture
def browser(open_browser: Callable[[], Browser]) -> Browser:
    return open_browser()
