"""The chain as the gateway sees it: one protocol, its calls, its events, its answers.

Owns the ``Chain`` protocol and every value that crosses it; refuses JSON-RPC, ABI bytes and web3 objects, which stay
in ``ethereum.py``. Implementations: ``gateway/ledger/ethereum.py`` (any JSON-RPC node, the embedded one included) and
``tests/simulators/chain.py``. Both pass ``tests/behaviours/test_chain.py``.

Shapes: hashes, roots and digests are 32 raw bytes; an ``Address`` is ``0x`` and 40 lower-case hex digits; amounts are
wei; times on chain are whole seconds. Methods are synchronous, each has a timeout of its own, and may be called from
several threads.
Spec: https://ethereum.github.io/execution-apis/ (JSON-RPC), https://eips.ethereum.org/EIPS/eip-712 (signed intents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType, Protocol

from gateway.ledger.calls import Call, Contracts
from gateway.ledger.events import Event

Address = NewType("Address", str)
"""``0x`` and 40 lower-case hex digits; made by ``address()`` alone."""
