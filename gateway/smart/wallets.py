"""Changing the wallet that signs for a patient, by whoever runs the gateway: after a loss, or a theft.

Owns the one way in which a registered wallet is replaced; refuses to take it away: who registered one took the signing
from the key the hospital keeps, and no operator gives it back. What the old wallet granted stays until it is revoked.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from gateway.audit import AuditEntry
from gateway.errors import Conflict, KeyDestroyed, NotFound
from gateway.smart.accounts import find_account, wallet_address
from gateway.smart.issuer import Smart
from gateway.smart.sessions import end_sessions
from gateway.smart.tokens import revoke_user

CHANGED = "wallet-changed"
"""The audit's word; the patient and the head are told of such a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """EIP-55 addresses. ``before`` None: there was none; ``standing``: grants signed by it that go on."""

    before: str | None
    after: str
    standing: int


def change_wallet(smart: Smart, fhir_user: str, wallet: str) -> Changed:
    """Register ``wallet`` in place of the one registered; sessions and tokens end in the same commit.

    The same wallet again changes nothing. Raises NotFound, Conflict, Unprocessable.
    """
    after = wallet_address(wallet)

    def work(connection: apsw.Connection) -> Changed:
        now_ms = smart.now_ms()
        account = find_account(connection, fhir_user)
        if account is None:
            raise NotFound(f"there is no account {fhir_user}")
        if account.closed_ms is not None:
            raise Conflict("the account is closed: open it first with `gateway user add`")
        if account.role != "patient":
            raise Conflict(f"a wallet signs for a patient; {fhir_user} is here as {account.role}")
        found = Changed(before=account.wallet, after=after, standing=_standing(connection, account.wallet))
        if account.wallet is not None and wallet_address(account.wallet) == after:
            return found
        if connection.execute("SELECT 1 FROM account WHERE lower(wallet)=lower(?) AND closed_ms IS NULL",
                              (after,)).fetchall():
            raise Conflict("this wallet is registered with another account")
        connection.execute("UPDATE account SET wallet=? WHERE fhir_user=?", (after, fhir_user))
        end_sessions(connection, fhir_user, now_ms)
        revoke_user(connection, fhir_user, now_ms)
        _audit(smart, connection, found, fhir_user, now_ms)
        return found
    return smart.database.transact(work)


def _standing(connection: apsw.Connection, wallet: str | None) -> int:
    return 0 if wallet is None else int(str(connection.execute(
        "SELECT count(DISTINCT grant_id) FROM provision WHERE address=lower(?) AND permit=1 AND state<>'revoked'",
        (wallet,)).get))


def _audit(smart: Smart, connection: apsw.Connection, found: Changed, fhir_user: str, now_ms: int) -> None:
    entry = AuditEntry(
        time_ms=now_ms, action="U", interaction=CHANGED, outcome="0", what=(fhir_user,), client="cli", user=None,
        role="patient", purpose="HOPERAT", operator=True, notify=True,
        reason=f"from {found.before or 'none'} to {found.after}")
    try:
        smart.audit(connection, entry, fhir_user.removeprefix("Patient/"))
    except KeyDestroyed:  # an erased patient has no audit of their own any more
        smart.audit(connection, entry, None)
