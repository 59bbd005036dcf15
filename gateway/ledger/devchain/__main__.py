"""``python -m gateway.ledger.devchain``: the embedded chain as a process."""

from __future__ import annotations

from gateway.ledger.devchain.process import main

if __name__ == "__main__":
    raise SystemExit(main())
