"""A browser without scripts: keeps cookies, reads pages, fills in and sends their forms, follows where told to.

Owns what such a browser would do, and no more: it sends what a form holds, from the page it stands on.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx

from gateway.smart.accounts import add_user
from gateway.smart.sessions import cookie_name, start_session, web_origin
from tests.journeys.hospital import Hospital


@dataclass
class Control:
    """One control of a form: its name, its value, whether it would be sent, and the text of its label."""

    kind: str
    name: str
    value: str
    checked: bool
    id: str | None = None
    label: str = ""


@dataclass
class Form:
    """One form of a page. ``sent`` is what pressing ``button`` sends."""

    action: str
    method: str
    controls: list[Control] = field(default_factory=list)

    def named(self, name: str) -> list[Control]:
        return [control for control in self.controls if control.name == name]

    def labelled(self, text: str) -> Control:
        """The one control whose label has this text."""
        found = [control for control in self.controls if control.label == text]
        assert len(found) == 1, [control.label for control in self.controls if control.label]
        return found[0]

    def tick(self, *labels: str) -> Form:
        for label in labels:
            self.labelled(label).checked = True
        return self

    def untick(self, *labels: str) -> Form:
        for label in labels:
            self.labelled(label).checked = False
        return self

    def only(self, *labels: str) -> Form:
        """Tick these boxes and no others."""
        for control in self.controls:
            if control.kind == "checkbox":
                control.checked = False
        return self.tick(*labels)

    def choose(self, name: str, value: str) -> Form:
        """Of a radio group, the one with this value."""
        group = self.named(name)
        assert value in [control.value for control in group], [control.value for control in group]
        for control in group:
            control.checked = control.value == value
        return self

    def fill(self, **values: str) -> Form:
        """Write into fields by name."""
        for name, value in values.items():
            (control,) = self.named(name)
            control.value = value
        return self

    def sent(self, button: str | None) -> list[tuple[str, str]]:
        pairs = [(control.name, control.value) for control in self.controls
                 if control.name and control.kind not in ("submit", "button")
                 and (control.checked or control.kind not in ("checkbox", "radio"))]
        pressed = [control for control in self.controls if control.kind == "submit" and button in (
            control.value, control.label)]
        assert pressed or button is None, [control.value for control in self.controls if control.kind == "submit"]
        return [*pairs, *((pressed[0].name, pressed[0].value) for _ in pressed[:1] if pressed[0].name)]


class Page(HTMLParser):
    """A page that came back: its forms, its text, and what it asked the browser to load."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__()
        self.response = response
        self.status = response.status_code
        self.forms: list[Form] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.inline: list[str] = []
        self.controls: list[Control] = []
        self._labels: dict[str, str] = {}
        self._label: tuple[str | None, list[str]] | None = None
        self._within: list[Control] = []
        self._button: Control | None = None
        self._area: Control | None = None
        self.feed(response.text)
        for control in self.controls:
            if control.id in self._labels:
                control.label = self._labels[control.id]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def form(self, button: str) -> Form:
        """The form that has this button (by its value or text)."""
        found = [form for form in self.forms if any(control.kind == "submit" and button in (
            control.value, control.label) for control in form.controls)]
        assert found, (self.status, self.text)
        return found[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value if value is not None else "" for name, value in attrs}
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag in ("style", "script") and "src" not in given:
            self.inline.append(tag)
        for name in ("href", "src"):
            if name in given:
                self.links.append(f"{tag} {given[name]}")
        if tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get")))
        elif tag == "label":
            self._label = given.get("for"), []
            self._within = []
        elif tag in ("input", "textarea", "select", "button"):
            kind = {"input": given.get("type", "text"), "button": given.get("type", "submit")}.get(tag, tag)
            control = Control(kind, given.get("name", ""), given.get("value", "on" if kind == "checkbox" else ""),
                              "checked" in given, given.get("id"))
            self.controls.append(control)
            if self.forms:
                self.forms[-1].controls.append(control)
            if self._label is not None:
                self._within.append(control)
            self._button = control if tag == "button" else self._button
            self._area = control if tag == "textarea" else self._area

    def handle_endtag(self, tag: str) -> None:
        if tag == "label" and self._label is not None:
            text = " ".join(" ".join(self._label[1]).split())
            if self._label[0] is not None:
                self._labels[self._label[0]] = text
            for control in self._within:
                control.label = text
            self._label = None
        elif tag == "button":
            self._button = None
        elif tag == "textarea":
            self._area = None

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self._area.value += data
            return
        self.texts.append(data)
        if self._label is not None:
            self._label[1].append(data)
        if self._button is not None:
            self._button.label = " ".join(f"{self._button.label} {data}".split())


class Browser:
    """One person's browser at a hospital. It follows redirects within the hospital alone; others it stops at."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital
        self.origin = web_origin(hospital.settings)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=hospital.app), base_url=self.origin,
                                      timeout=60)

    def sign_in(self, user: str | None, *, role: str | None = None, methods: Sequence[str] | None = None,
                **account: Any) -> Browser:
        """As if ``user``, whose account is made, had signed in; None: somebody not proofed yet."""
        smart = self.hospital.smart
        if user is not None:
            role = role or {"Practitioner": "clinician", "Patient": "patient"}[user.partition("/")[0]]
            add_user(smart, fhir_user=user, role=role, name=account.pop("name", "Sam Example"), **account)
        login, now_ms = secrets.token_hex(8), smart.now_ms()
        self.cookie = self.hospital.database.transact(lambda tx: (
            tx.execute("INSERT INTO login (id,name,shown,wanted,state,fhir_user,created_ms,decided_ms) VALUES "
                       "(?,?,?,?,?,?,?,?)", (login, login, "Sam Example", role or "patient",
                                            "waiting" if user is None else "verified", user, now_ms, now_ms)),
            start_session(tx, smart, login=login, methods=methods or ("pwd", "otp"), device="test", previous=None,
                          now_ms=now_ms))[1])
        self.http.cookies.set(cookie_name(self.hospital.settings), self.cookie)
        return self

    def get(self, url: str, **headers: str) -> Page:
        return self.page(self.request("GET", url, headers={"Sec-Fetch-Site": "none", **headers}))

    def request(self, method: str, url: str, **more: Any) -> httpx.Response:
        return self.hospital.run(self.http.request(method, url, **more))

    def post(self, url: str, fields: Sequence[tuple[str, str]] | Mapping[str, str], **headers: str) -> httpx.Response:
        """Send a form's fields as a browser on a page of this hospital does."""
        pairs = list(fields.items()) if isinstance(fields, Mapping) else list(fields)
        return self.request("POST", url, content=urlencode(pairs), headers={
            "Content-Type": "application/x-www-form-urlencoded", "Origin": self.origin,
            "Sec-Fetch-Site": "same-origin", **headers})

    def submit(self, form: Form, button: str | None = None) -> Page:
        return self.page(self.post(form.action, form.sent(button)))

    def page(self, response: httpx.Response) -> Page:
        """The page a response leads to within the hospital."""
        for _ in range(8):
            target = response.headers.get("Location")
            if target is None:
                break
            parts = urlsplit(target)
            if parts.scheme and f"{parts.scheme}://{parts.netloc}" != self.origin:
                break
            response = self.request("GET", target, headers={"Sec-Fetch-Site": "same-origin"})
        return Page(response)

    def close(self) -> None:
        self.hospital.run(self.http.aclose())
