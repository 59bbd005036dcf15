"""Page links: stateless, sealed, bound to the one they were given to, and good for a time.

Owns the token in ``?_page=``: what was asked, where the last page ended, the snapshot it reads, sealed under
the page-link key; refuses one that was altered, is too old, or is presented under another Grant (invariant 4).
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from typing import Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import BadSearch, Gone
from gateway.store.index import Cursor

_TRAIL_MAX: Final = 12
"""Pages back that a link remembers: each costs some thirty letters of the URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLink:
    """``type`` is the place searched, below the base; ``pairs`` are the query parameters as first asked; ``snapshot``
    the seq every page reads at; ``cursor`` None is the first page.

    ``trail``: where earlier pages began, the last before this one at its end. ``total`` was told on the first page,
    while the caller's ``decision_seq`` was ``total_seq``.
    """

    type: str
    pairs: tuple[tuple[str, str], ...]
    strict: bool
    snapshot: int
    cursor: Cursor | None
    expires_ms: int
    trail: tuple[Cursor | None, ...] = ()
    total: int | None = None
    total_seq: int = 0


class PageLinks:
    """Seals and opens page links under one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, link: PageLink, holder: str) -> str:
        """The token for ``holder`` (who the Grant belongs to)."""
        nonce = os.urandom(12)
        body = orjson.dumps([link.type, link.pairs, link.strict, link.snapshot, _plain(link.cursor), link.expires_ms,
                             [_plain(cursor) for cursor in link.trail[-_TRAIL_MAX:]], link.total, link.total_seq])
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, body, holder.encode())).decode().rstrip("=")

    def open(self, token: str, holder: str, now_ms: int) -> PageLink:
        """The link behind ``token``. Raises BadSearch when altered or another holder's, Gone when too old."""
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            type_, pairs, strict, snapshot, cursor, expires_ms, trail, total, total_seq = orjson.loads(
                self._cipher.decrypt(sealed[:12], sealed[12:], holder.encode()))
        except (binascii.Error, ValueError, InvalidTag) as error:
            raise BadSearch("the page link was altered, or was given to someone else", code="value",
                            expression="http._page") from error
        if now_ms > expires_ms:
            raise Gone("the page link has expired; search again", version_id=0)
        return PageLink(type=type_, pairs=tuple((name, value) for name, value in pairs), strict=strict,
                        snapshot=snapshot, cursor=_cursor(cursor), expires_ms=expires_ms,
                        trail=tuple(_cursor(one) for one in trail), total=total, total_seq=total_seq)


def _plain(cursor: Cursor | None) -> list[object] | None:
    return None if cursor is None else [cursor.value, cursor.seq, cursor.offset]


def _cursor(plain: list[int] | None) -> Cursor | None:
    return None if plain is None else Cursor(*plain)
