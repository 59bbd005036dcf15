"""A pytest plugin that runs a suite with the gateway's own logging at debug, and searches what was logged for every
secret and every name that went in or out. ``pytest -p tests.security.log_watch -p no:logging --log-watch FILE``.

Owns what counts as secret; refuses the session (exit 3) where one of them was logged.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import httpx
import pytest

from gateway.config import load_settings
from gateway.logs import set_up_logging

_FIELDS: Final = frozenset({
    "access_token", "refresh_token", "id_token", "client_secret", "client_assertion", "registration_access_token",
    "assertion", "code", "code_verifier", "token", "launch", "password", "again", "repeat", "otp", "one_time_code",
    "totp", "secret", "signature", "csrf", "state", "nonce", "challenge", "recovery", "new_password", "old_password",
    "current"})
_NAMES: Final = frozenset({"family", "given", "line", "birthDate", "postalCode", "div", "display"})
_SHORTEST: Final = 8
_HEX: Final = re.compile(r"(?:0x)?[0-9a-f]{64}")
_KNOWN: Final = frozenset({"Practitioner", "clinician"})


class Watch:
    """What was said in confidence, and what was logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}

    def keep(self, text: object, what: str) -> None:
        if isinstance(text, str) and len(text) >= _SHORTEST and text not in _KNOWN and not text.isspace():
            self.secrets.setdefault(text, what)

    def request(self, request: httpx.Request) -> None:
        authorization = request.headers.get("authorization", "")
        self.keep(authorization.partition(" ")[2], "Authorization")
        for part in request.headers.get("cookie", "").split(";"):
            self.keep(part.partition("=")[2].strip(), "Cookie")
        for name, value in parse_qsl(request.url.query.decode("latin-1")):
            if name in _FIELDS or name.partition(":")[0] in ("name", "family", "given", "identifier", "birthdate"):
                self.keep(value, f"?{name}")
        if isinstance(request.stream, httpx.ByteStream):
            self.body(request.content, request.headers.get("content-type", ""))

    def response(self, response: httpx.Response) -> None:
        for line in response.headers.get_list("set-cookie"):
            self.keep(line.partition("=")[2].partition(";")[0], "Set-Cookie")
        for name, value in parse_qsl(response.headers.get("location", "").partition("?")[2]):
            if name in _FIELDS:
                self.keep(value, f"Location ?{name}")
        if getattr(response, "_content", None):
            self.body(response.content, response.headers.get("content-type", ""))

    def body(self, body: bytes, kind: str) -> None:
        if "x-www-form-urlencoded" in kind:
            for name, value in parse_qsl(body.decode("latin-1")):
                if name in _FIELDS:
                    self.keep(value, f"form {name}")
        elif "json" in kind:
            try:
                self.walk(json.loads(body), "")
            except (ValueError, RecursionError):
                return

    def walk(self, value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                self.walk(item, name)
            if "system" in value and isinstance(value.get("value"), str) and key in ("identifier", "telecom"):
                self.keep(value["value"], key)
        elif isinstance(value, list):
            for item in value:
                self.walk(item, key)
        elif key in _NAMES or (key in _FIELDS and isinstance(value, str) and " " not in value and key != "code"):
            self.keep(value, key)

    def found(self) -> list[str]:
        """Which kinds of secrets were logged, and in what line; never the secret."""
        told: list[str] = []
        lines = self.path.read_text(errors="replace").splitlines()
        everything = "\n".join(lines)
        for secret, what in self.secrets.items():
            if secret in everything:
                line = next(line for line in lines if secret in line)
                told.append(f"{what} in: {line.replace(secret, '[here]')[:300]}")
        told += [f"64 hex digits in: {_HEX.sub('[here]', line)[:300]}" for line in lines if _HEX.search(line)]
        return told


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--log-watch", required=True)


def pytest_configure(config: pytest.Config) -> None:
    path = Path(config.getoption("--log-watch"))
    watch = Watch(path)
    set_up_logging(load_settings({"GATEWAY_LOG_LEVEL": "debug"}))
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(path.open("a"))
    config.stash[_WATCH] = watch
    for client in (httpx.Client, httpx.AsyncClient):
        _record(client, watch)


def _record(client: Any, watch: Watch) -> None:
    plain = client.send

    def send(self: Any, request: httpx.Request, **more: Any) -> httpx.Response:
        watch.request(request)
        response: httpx.Response = plain(self, request, **more)
        watch.response(response)
        return response

    async def send_async(self: Any, request: httpx.Request, **more: Any) -> httpx.Response:
        watch.request(request)
        response: httpx.Response = await plain(self, request, **more)
        watch.response(response)
        return response

    client.send = send if client is httpx.Client else send_async


def pytest_sessionfinish(session: pytest.Session) -> None:
    watch = session.config.stash[_WATCH]
    told = watch.found()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    kinds = sorted({what.lstrip("?") for what in watch.secrets.values()})
    lines = len(watch.path.read_text(errors="replace").splitlines())
    reporter.write_line(f"\nlog watch: {len(watch.secrets)} secrets and names ({', '.join(kinds)}), {lines} lines, "
                        f"{len(told)} logged")
    for line in told[:20]:
        reporter.write_line(f"log watch: LOGGED {line}")
    if told:
        session.exitstatus = 3


_WATCH = pytest.StashKey[Watch]()
