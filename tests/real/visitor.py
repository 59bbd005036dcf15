"""A person before a browser without scripts, over HTTP: signs in where asked, and answers the authorize screen."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from tests.journeys.browser import Form, Page


class Visitor:
    """Knows their login. Stops at the first address that is not the gateway's."""

    def __init__(self, origin: str, *, login: str, password: str) -> None:
        self._origin, self._login, self._password = origin, login, password
        self._http = httpx.Client(base_url=origin, timeout=60)

    def close(self) -> None:
        self._http.close()

    def sent_to(self, url: str, *, press: str = "allow", how_long: str | None = None) -> str | Page:
        """Where the app is told the answer, or the page that says why it is told nothing.

        ``press``: allow or deny; ``how_long``: of the choices of the screen, its first one when absent.
        """
        stands = self._led(self._http.get(url))
        if isinstance(stands, Page) and stands.status == 200 and "Sign in to" in stands.text:
            form = stands.form("Sign in").fill(name=self._login, password=self._password)
            stands = self._sent(form, "Sign in")
        if isinstance(stands, Page) and stands.status == 200:
            form = stands.form(press)
            if how_long is not None:
                form.choose("how-long", how_long)
            stands = self._sent(form, press)
        return stands

    def _sent(self, form: Form, button: str) -> str | Page:
        return self._led(self._http.post(form.action, data=_fields(form.sent(button)), headers={
            "Origin": self._origin, "Sec-Fetch-Site": "same-origin"}))

    def _led(self, response: httpx.Response) -> str | Page:
        while "Location" in response.headers:
            target = response.headers["Location"]
            parts = urlsplit(target)
            if parts.scheme and f"{parts.scheme}://{parts.netloc}" != self._origin:
                return str(target)
            response = self._http.get(target)
        return Page(response)


def _fields(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found
