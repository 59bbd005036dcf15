"""One hospital's authorisation server on a fresh database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from fastapi import FastAPI
from joserfc.jwk import ECKey, RSAKey

from gateway.audit import AuditEntry
from gateway.config import load_settings
from gateway.fhir.definitions import Definitions
from gateway.smart.issuer import open_smart
from gateway.store.sql import Database
from gateway.web.smart import router
from tests.unit.smart.hospital import Hospital, Signer, register


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def definitions() -> Definitions:
    return Definitions.load()


@pytest.fixture(scope="session")
def rsa_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "rsa-1"})


@pytest.fixture(scope="session")
def ec_key() -> ECKey:
    return ECKey.generate_key("P-384", {"kid": "ec-1"})


@pytest.fixture
def hospital(tmp_path: Path, definitions: Definitions) -> Iterator[Hospital]:
    database = Database(tmp_path / "store" / "gateway.db", bytes(range(32)))
    database.migrate()
    clock_ms = [time.time_ns() // 1_000_000]
    audited: list[tuple[AuditEntry, str | None]] = []

    def audit(_: apsw.Connection, entry: AuditEntry, patient: str | None) -> None:
        audited.append((entry, patient))

    settings = load_settings({"GATEWAY_DATA_DIR": str(tmp_path)})
    smart = open_smart(database=database, settings=settings, token_key=bytes(32), definitions=definitions,
                       audit=audit, allow_loopback_jwks=True, secrets=lambda label: (label.encode().ljust(32, b"-"),),
                       now_ms=lambda: clock_ms[0])
    app = FastAPI()
    app.include_router(router(smart, lambda _grant, _consent: {}))
    yield Hospital(smart, clock_ms, audited, app)
    database.close()


@pytest.fixture
def signer(hospital: Hospital, rsa_key: RSAKey, tmp_path: Path) -> Signer:
    """A backend registered with an inline RSA key and a ceiling of ``system/*.rs``."""
    made = Signer(rsa_key, "RS384", now_s=lambda: hospital.clock_ms[0] / 1_000)
    register(hospital, made, tmp_path, scope="system/*.rs")
    return made
