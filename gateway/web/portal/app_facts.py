"""What the hospital knows of an app, for the person who is to trust it.

Owns telling what was checked from what the app says of itself; refuses to show its pictures: a logo from elsewhere is
a stranger's, and is fetched from where it can count who looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.smart.clients import Client
from gateway.smart.issuer import Smart
from gateway.smart.registration import find_registration

_LINKS: Final = {"client_uri": "Its own page", "policy_uri": "What it says it does with data",
                 "tos_uri": "Its terms of service"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """``own_word``: it registered itself, so that its name and links are what it says; ``admitted_ms``: when the
    hospital let it in; ``links``: label to address."""

    own_word: bool
    admitted_ms: int | None
    links: Mapping[str, str] = field(default_factory=dict)


def about(smart: Smart, client: Client) -> AppFacts:
    """The facts of a registered app."""
    found = find_registration(smart.database.reader, client.id)
    links = {label: address for name, label in _LINKS.items()
             if isinstance(address := client.metadata.get(name), str) and address.startswith("https://")}
    return AppFacts(own_word=found is not None, admitted_ms=None if found is None else found.decided_ms, links=links)
