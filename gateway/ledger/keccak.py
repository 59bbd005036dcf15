"""keccak-256 as Ethereum has it, by the C implementation: 0.9 us for a leaf, where pycryptodome's takes 6.

Owns that one choice; refuses to fall back silently. https://keccak.team/keccak_specs_summary.html
"""

from __future__ import annotations

from typing import cast

from sha3 import keccak_256  # type: ignore[import-untyped]  # C, without stubs


def keccak(data: bytes) -> bytes:
    """The 32-byte keccak-256 (not SHA3-256) of ``data``."""
    return cast(bytes, keccak_256(data).digest())
