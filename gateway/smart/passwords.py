"""Passwords: Argon2id with the second recommended parameters of RFC 9106.

Owns hashing, checking and what a new password must be; refuses short ones. A hash says its own parameters, so that
raising them rehashes at the next sign-in. https://www.rfc-editor.org/rfc/rfc9106, NIST SP 800-63B section 5.1.1
"""

from __future__ import annotations

import os
import re
import unicodedata
from functools import cache
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from gateway.errors import IntegrityBroken, Unprocessable

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 256
ITERATIONS: Final = 3
LANES: Final = 4
MEMORY_KIB: Final = 65_536
_PHC: Final = re.compile(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")


def check_new_password(password: str, *, login_name: str) -> None:
    """Whether it may become a password. Raises Unprocessable, never echoing it."""
    if len(password) < MIN_LENGTH:
        raise Unprocessable(f"a password has at least {MIN_LENGTH} characters; several words are a good one")
    if len(password) > MAX_LENGTH:
        raise Unprocessable(f"a password has at most {MAX_LENGTH} characters")
    plain = password.casefold()
    if len(set(plain)) < 5 or (len(login_name) >= 4 and login_name.casefold() in plain and
                               len(plain) < len(login_name) + 8):
        raise Unprocessable("this password is too easy to guess: it repeats itself or your login name")


def hash_password(password: str) -> str:
    """The PHC string to store. 64 MiB and about 0.1 s of two cores: keep it off the event loop."""
    return Argon2id(salt=os.urandom(16), length=32, iterations=ITERATIONS, lanes=LANES,
                    memory_cost=MEMORY_KIB).derive_phc_encoded(_bytes(password))


def verify_password(stored: str | None, password: str) -> bool:
    """Whether it is the password. Without a stored one the same work is done, for nothing.

    Raises IntegrityBroken.
    """
    if stored is not None and _PHC.fullmatch(stored) is None:
        raise IntegrityBroken("a stored password hash cannot be read")
    try:
        Argon2id.verify_phc_encoded(_bytes(password[:MAX_LENGTH]), stored or _nobodys())
    except InvalidKey:
        return False
    return stored is not None and len(password) <= MAX_LENGTH


def needs_rehash(stored: str) -> bool:
    """Whether it was hashed with other parameters than today's."""
    match = _PHC.fullmatch(stored)
    return match is None or tuple(map(int, match.groups())) != (MEMORY_KIB, ITERATIONS, LANES)


def _bytes(password: str) -> bytes:
    # One password, however the keyboard composes its letters (SP 800-63B section 5.1.1.2).
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


@cache
def _nobodys() -> str:
    return hash_password(os.urandom(16).hex())
