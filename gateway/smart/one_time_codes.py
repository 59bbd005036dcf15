"""One-time codes: TOTP, and the recovery codes for who lost the device that makes them.

Owns seeds, the window of time and the rule that no code counts twice; refuses a code of a step already taken.
https://www.rfc-editor.org/rfc/rfc6238 (section 5.2 on replay and on the window)
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

DIGITS: Final = 6
STEP_S: Final = 30
_WINDOW: Final = 1
"""Steps before and after the present one that count: clocks differ, and people type slowly."""
RECOVERY_CODES: Final = 8
_CODE: Final = re.compile(r"[0-9]{6}")
_RECOVERY: Final = re.compile(r"[a-z2-7]{16}")


def new_seed() -> bytes:
    """160 random bits (RFC 4226 section 4, R6)."""
    return os.urandom(20)


def seed_text(seed: bytes) -> str:
    """As an app takes it typed: base32."""
    return base64.b32encode(seed).decode().rstrip("=")


def otpauth_uri(seed: bytes, *, name: str, issuer: str) -> str:
    """As an app takes it from a link or a QR code."""
    uri: str = _totp(seed).get_provisioning_uri(name.replace(":", "_"), issuer.replace(":", "_"))
    return uri.replace("+", "%20")  # a form's space, which apps show as a plus; a real plus is %2B by now


def taken_step(seed: bytes, code: str, *, now_s: float, after_step: int) -> int | None:
    """The time step ``code`` belongs to, if it is right, near ``now_s`` and later than ``after_step``."""
    digits = code.replace(" ", "")
    given = digits if _CODE.fullmatch(digits) else "0" * DIGITS
    present, found = int(now_s // STEP_S), None
    for step in range(max(present - _WINDOW, 0), present + _WINDOW + 1):
        # Every step is compared, whatever came before: the time says nothing of which was right.
        right = secrets.compare_digest(code_at(seed, step), given)
        if right and given == digits and step > after_step and found is None:
            found = step
    return found


def code_at(seed: bytes, step: int) -> str:
    """The code of a time step."""
    return _totp(seed).generate(step * STEP_S).decode()


def new_recovery_codes() -> tuple[str, ...]:
    """80 random bits each, in four groups of four letters."""
    return tuple("-".join(re.findall("....", base64.b32encode(os.urandom(10)).decode().lower()))
                 for _ in range(RECOVERY_CODES))


def recovery_hash(login: str, code: str) -> bytes | None:
    """What is stored of a recovery code; None when it has not the form of one.

    80 random bits need no slow hash: there is no list of likely ones to try.
    """
    folded = code.lower().replace("-", "").replace(" ", "")
    if _RECOVERY.fullmatch(folded) is None:
        return None
    return hashlib.sha256(f"recovery code 1 {login} {folded}".encode()).digest()


def _totp(seed: bytes) -> TOTP:
    # SHA-1 and six digits are what every authenticator app makes (RFC 6238 section 1.2); HMAC does not rest on
    # SHA-1's lost collision resistance.
    return TOTP(seed, DIGITS, SHA1(), STEP_S, enforce_key_length=False)  # noqa: S303
