"""Resetting how a person signs in, by whoever runs the gateway: after a loss, or a theft.

Owns ending every way in but one, which gets a new password (and new codes, where the role needs them), and with them
the person's sessions and all they let apps do, in one commit. Refuses an account that is closed. A registered wallet
is the person's own to sign with, and stays: it is told, so that it can be changed as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import apsw

from gateway.audit import AuditEntry
from gateway.errors import Conflict, KeyDestroyed, NotFound
from gateway.smart import logins, one_time_codes, sessions
from gateway.smart.accounts import Account, find_account
from gateway.smart.issuer import Smart
from gateway.smart.tokens import revoke_user


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """What came of it. ``uri``: ``otpauth://`` of the new codes, told once; ``wallet``: still registered."""

    uri: str | None = field(repr=False)
    closed_logins: int
    passkeys: int
    identities: int
    wallet: str | None


def reset(smart: Smart, *, fhir_user: str, name: str, password: str) -> Reset:
    """Make ``name``, with ``password``, the person's only way in. Raises NotFound, Conflict, Unprocessable."""
    known = find_account(smart.database.reader, fhir_user)
    if known is None:
        raise NotFound(f"there is no account {fhir_user}")
    prepared = logins.prepare(name=name, password=password, role=known.role)

    def work(connection: apsw.Connection) -> Reset:
        now_ms = smart.now_ms()
        account = find_account(connection, fhir_user)
        if account is None or account.closed_ms is not None:
            raise Conflict("the account is closed: open it first with `gateway user add`")
        if (account.role in sessions.FACTOR_FREE) is not (prepared.seed is None):
            raise Conflict("the person's role changed meanwhile: try again")
        ended = [logins.forget_factors(connection, one.id) for one in logins.logins_of(connection, fhir_user)]
        kept = logins.put_prepared(connection, smart, prepared, fhir_user=fhir_user, role=account.role,
                                   shown=account.name, now_ms=now_ms)
        connection.execute("UPDATE login SET state='closed', password=NULL, totp=NULL, totp_on=0, decided_ms=?, "
                           "decided_by='cli' WHERE fhir_user=? AND state='verified' AND id<>?",
                           (now_ms, fhir_user, kept))
        closed = connection.changes()
        sessions.end_sessions(connection, fhir_user, now_ms)
        revoke_user(connection, fhir_user, now_ms)
        found = Reset(
            uri=None if prepared.seed is None else one_time_codes.otpauth_uri(
                prepared.seed, name=prepared.name, issuer=smart.settings.hospital_name),
            closed_logins=closed, passkeys=sum(one[0] for one in ended), identities=sum(one[1] for one in ended),
            wallet=account.wallet)
        _audit(smart, connection, account, found, now_ms)
        return found
    return smart.database.transact(work)


def _audit(smart: Smart, connection: apsw.Connection, account: Account, found: Reset, now_ms: int) -> None:
    """To the patient's own audit where it is a patient's: nothing says more of a stolen account."""
    user = account.fhir_user
    entry = AuditEntry(
        time_ms=now_ms, action="U", interaction="login-reset", outcome="0", what=(user,), client="cli", user=None,
        role=account.role, purpose="HOPERAT", operator=True,
        reason=f"{found.closed_logins} logins, {found.passkeys} passkeys and {found.identities} identities ended")
    try:
        smart.audit(connection, entry, user.removeprefix("Patient/") if user.startswith("Patient/") else None)
    except KeyDestroyed:  # an erased patient has no audit of their own any more
        smart.audit(connection, entry, None)
