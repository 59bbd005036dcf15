"""People who signed in on the portal, without the pages: their login, account and session.

Owns what a test needs to send a browser's requests; refuses nothing.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from gateway.smart.accounts import add_user
from gateway.smart.sessions import cookie_name, csrf_of, start_session, web_origin
from tests.journeys.hospital import Hospital


class Browser:
    """A browser with a session cookie, on a page of this origin."""

    def __init__(self, hospital: Hospital, user: str, role: str, *, methods: tuple[str, ...] = ("pwd", "otp"),
                 **account: Any) -> None:
        self.hospital = hospital
        add_user(hospital.smart, fhir_user=user, role=role, name=user, **account)
        login, now_ms = f"login-{user}".lower(), hospital.smart.now_ms()

        def work(tx: Any) -> str:
            tx.execute("INSERT INTO login (id,name,shown,wanted,state,fhir_user,created_ms,decided_ms) "
                       "VALUES (?,?,?,?,'verified',?,?,?) ON CONFLICT DO NOTHING",
                       (login, login, user, role, user, now_ms, now_ms))
            return start_session(tx, hospital.smart, login=login, methods=methods, device="test", previous=None,
                                 now_ms=now_ms)
        self.cookie = hospital.database.transact(work)
        self.csrf = csrf_of(hospital.smart, self.cookie)
        self.origin = web_origin(hospital.settings)

    def approve(self, client_id: str) -> httpx.Response:
        """Let a client in as it stands."""
        path = f"/oauth/clients/{client_id}"
        return self.send("POST", f"{path}/approve", {"revision": self.send("GET", path).json()["revision"]})

    def send(self, method: str, path: str, body: Any = None, *, csrf: str | None = None, origin: str | None = None,
             **headers: str) -> httpx.Response:
        """A request of a script on a page, JSON in and out; ``csrf`` and ``origin`` are the right ones unless given."""
        sent = {"Cookie": f"{cookie_name(self.hospital.settings)}={self.cookie}",
                "Origin": self.origin if origin is None else origin,
                "X-CSRF-Token": self.csrf if csrf is None else csrf, "Content-Type": "application/json",
                **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.hospital.run(self.hospital.http.request(
            method, f"{self.origin}{path}", content=None if body is None else json.dumps(body).encode(),
            headers={name: value for name, value in sent.items() if value}))
