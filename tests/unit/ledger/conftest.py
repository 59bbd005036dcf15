"""One hospital with its chain, and keys that a file's tests share: they are slow to make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.crypto.keys import KeyRing
from tests.unit.ledger.ledger_world import World, ring_at


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRing]:
    ring = ring_at(tmp_path_factory.mktemp("keys"))
    yield ring
    ring.close()


@pytest.fixture
def world(tmp_path: Path, ring: KeyRing) -> Iterator[World]:
    world = World(tmp_path, ring)
    yield world
    world.database.close()
