"""A hospital's authorisation server as tests hold it, and a client that signs for itself."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from joserfc import jws
from joserfc.jwk import KeySet

from gateway.audit import AuditEntry
from gateway.smart.clients import add_client
from gateway.smart.issuer import Smart

TOKEN_URL = "http://127.0.0.1:8080/oauth/token"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass
class Hospital:
    """A server, its wall clock and what it audited."""

    smart: Smart
    clock_ms: list[int]
    audited: list[tuple[AuditEntry, str | None]]
    app: FastAPI

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1:8080")


@dataclass
class Signer:
    """A client outside: its private key, and assertions made with it."""

    key: Any
    algorithm: str
    client_id: str = ""
    now_s: Callable[[], float] = time.time
    header: dict[str, Any] = field(default_factory=dict)

    def assertion(self, header: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
        now_s = int(self.now_s())
        merged: dict[str, Any] = {"iss": self.client_id, "sub": self.client_id, "aud": TOKEN_URL, "exp": now_s + 300,
                                  "jti": uuid.uuid4().hex, **claims}
        merged = {name: value for name, value in merged.items() if value is not None}
        head = {"alg": self.algorithm, "kid": self.key.kid, "typ": "JWT", **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return jws.serialize_compact(head, json.dumps(merged).encode(), key or self.key, algorithms=[head["alg"]])

    def form(self, assertion: str | None = None, **fields: str) -> dict[str, str]:
        return {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": assertion or self.assertion(), "scope": "system/*.rs", **fields}

    def public_jwks(self) -> dict[str, Any]:
        return dict(KeySet([self.key]).as_dict(private=False))


def register(hospital: Hospital, signer: Signer, folder: Path, *, scope: str, kind: str = "backend",
             jwks: str | None = None, purposes: tuple[str, ...] = ("TREAT",)) -> str:
    if jwks is None:
        path = folder / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(signer.public_jwks()))
        jwks = str(path)
    signer.client_id = add_client(hospital.smart, name="Analytics", kind=kind, scope=scope, jwks=jwks,  # type: ignore[arg-type]
                                  purposes=purposes)
    return signer.client_id
