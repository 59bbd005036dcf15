"""What a person changes about how they sign in: one-time codes, recovery codes, passkeys, the registered wallet.

Owns those changes and their audit; refuses them in a session that is not fresh, or ended meanwhile, and refuses staff
to give up the last factor their role needs. A change of factors ends the login's other sessions.
"""

from __future__ import annotations

from typing import Any

import apsw

from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable
from gateway.smart import logins, one_time_codes, passkeys, sessions, sign_in
from gateway.smart.accounts import find_account
from gateway.smart.authorization import revoke_session
from gateway.smart.issuer import Smart
from gateway.smart.logins import Login, audit_login
from gateway.smart.sealing import seal
from gateway.smart.sessions import Session

_REGISTERED = "a wallet is registered already: the hospital changes it (`gateway user wallet`)"

def check_recent(smart: Smart, session: Session) -> None:
    """Raises Forbidden when the sign-in is too long ago to change how to sign in."""
    if session.state == "rejected" or not session.is_recent(smart.now_ms()):
        raise Forbidden("sign in again first: this changes how you sign in")


def begin_codes(smart: Smart, session: Session) -> tuple[str, str]:
    """A new seed, in use from its first code on: (base32 text, ``otpauth://`` URI). Raises Conflict, Forbidden."""
    check_recent(smart, session)
    seed = one_time_codes.new_seed()

    def work(connection: apsw.Connection) -> Login:
        login = _login(connection, session)
        if login.totp_on:
            raise Conflict("codes are set up already: remove them first")
        connection.execute("UPDATE login SET totp=?, totp_step=0 WHERE id=? AND totp_on=0",
                           (seal(smart, seed, logins.totp_place(login.id)), login.id))
        return login
    login = smart.database.transact(work)
    return one_time_codes.seed_text(seed), one_time_codes.otpauth_uri(
        seed, name=login.name, issuer=smart.settings.hospital_name)


def confirm_codes(smart: Smart, session: Session, code: str) -> tuple[str, ...]:
    """Turn the seed on by a first code; the recovery codes, told once. Raises Unprocessable, Forbidden."""
    check_recent(smart, session)

    def work(connection: apsw.Connection) -> tuple[str, ...]:
        now_ms = smart.now_ms()
        login = _login(connection, session)
        seed = logins.seed_of(smart, login)
        if seed is None or login.totp_on:
            raise Conflict("begin setting codes up first")
        step = one_time_codes.taken_step(seed, code, now_s=now_ms / 1_000, after_step=0)
        if step is None:
            raise Unprocessable("this is not the code of now: check the clock of your device and try the next one")
        connection.execute("UPDATE login SET totp_on=1, totp_step=? WHERE id=?", (step, login.id))
        made = _new_recovery(connection, login.id)
        _changed(smart, connection, session, "codes-added", now_ms)
        return made
    return smart.database.transact(work)


def renew_recovery(smart: Smart, session: Session) -> tuple[str, ...]:
    """New recovery codes; the old ones are void. Raises Conflict, Forbidden."""
    check_recent(smart, session)

    def work(connection: apsw.Connection) -> tuple[str, ...]:
        if not _login(connection, session).totp_on:
            raise Conflict("recovery codes go with one-time codes: set those up first")
        _changed(smart, connection, session, "recovery-codes-renewed", smart.now_ms())
        return _new_recovery(connection, session.login)
    return smart.database.transact(work)


def remove_codes(smart: Smart, session: Session) -> None:
    """Sign in without codes from now on. Raises Conflict, Forbidden."""
    def work(connection: apsw.Connection) -> None:
        login = _login(connection, session)
        connection.execute("UPDATE login SET totp=NULL, totp_on=0, totp_step=0 WHERE id=?", (login.id,))
        connection.execute("DELETE FROM recovery_code WHERE login=?", (login.id,))
        _check_left(connection, session, login)
        _changed(smart, connection, session, "codes-removed", smart.now_ms())
    check_recent(smart, session)
    smart.database.transact(work)


def begin_passkey(smart: Smart, session: Session) -> dict[str, Any]:
    """The options a browser makes a passkey from. Raises Conflict, Forbidden."""
    check_recent(smart, session)
    login = _login(smart.database.reader, session)
    return passkeys.begin_adding(smart, login=login.id, name=login.name, shown=login.shown, bound=session.id)


def add_passkey(smart: Smart, session: Session, *, name: str, credential: Any) -> None:
    """Store the passkey a browser made. Raises Unprocessable, Forbidden."""
    check_recent(smart, session)
    passkeys.add(smart, login=session.login, bound=session.id, name=name, credential=credential,
                 tell=lambda connection: _changed(smart, connection, session, "passkey-added", smart.now_ms()))


def remove_passkey(smart: Smart, session: Session, id_: str) -> None:
    """Forget a passkey. Raises NotFound, Conflict, Forbidden."""
    def work(connection: apsw.Connection) -> None:
        if not passkeys.remove(connection, login=session.login, id_=id_):
            raise NotFound("there is no such passkey")
        _check_left(connection, session, _login(connection, session))
        _changed(smart, connection, session, "passkey-removed", smart.now_ms())
    check_recent(smart, session)
    smart.database.transact(work)


def add_wallet(smart: Smart, session: Session, text: str, signature: str, *, chain_id: int) -> str:
    """Register the wallet that signed the message as the patient's own, once; its address.

    Raises Unprocessable, Conflict, Forbidden.
    """
    check_wallet(smart, session)

    def taken_back(connection: apsw.Connection) -> str | Unprocessable:
        try:
            return sign_in.wallet_of(connection, smart, "wallet-add", text, signature, chain_id=chain_id,
                                     bound=session.id, now_ms=smart.now_ms())
        except Unprocessable as error:
            return error  # the nonce is spent all the same
    address = smart.database.transact(taken_back)
    if isinstance(address, Unprocessable):
        raise address

    def work(connection: apsw.Connection) -> str:
        if connection.execute("SELECT 1 FROM account WHERE wallet=? AND closed_ms IS NULL", (address,)).fetchall():
            raise Conflict("this wallet is registered with an account already")
        connection.execute("UPDATE account SET wallet=? WHERE fhir_user=? AND wallet IS NULL AND closed_ms IS NULL",
                           (address, session.user))
        if not connection.changes():
            raise Conflict(_REGISTERED)
        _changed(smart, connection, session, "wallet-added", smart.now_ms())
        return address
    return smart.database.transact(work)


def check_wallet(smart: Smart, session: Session) -> None:
    """Whether the session may register a wallet. Raises Conflict, Forbidden."""
    check_recent(smart, session)
    # Not a delegate's: the mandate ends, a registered wallet stays.
    if session.user is None or session.role != "patient":
        raise Forbidden("a wallet is registered by a verified patient")
    account = find_account(smart.database.reader, session.user)
    if account is None or account.wallet is not None:
        raise Conflict(_REGISTERED)


def _login(connection: apsw.Connection, session: Session) -> Login:
    login = logins.find_login(connection, session.login)
    if login is None:
        raise NotFound("there is no such login")
    return login


def _new_recovery(connection: apsw.Connection, login: str) -> tuple[str, ...]:
    made = one_time_codes.new_recovery_codes()
    connection.execute("DELETE FROM recovery_code WHERE login=?", (login,))
    for code in made:
        connection.execute("INSERT INTO recovery_code (login,hash) VALUES (?,?)",
                           (login, one_time_codes.recovery_hash(login, code)))
    return made


def _check_left(connection: apsw.Connection, session: Session, login: Login) -> None:
    """What is left to sign in with is something, and enough for the role. Raises Conflict."""
    left = logins.factors_of(connection, _login(connection, session))
    if not left or not sessions.is_enough(session.role or login.wanted, left):
        raise Conflict("this is the last factor your sign-in needs: set up another one first")


def _changed(smart: Smart, connection: apsw.Connection, session: Session, interaction: str, now_ms: int) -> None:
    sessions.require_open(connection, session.id)
    revoke_session(connection, sessions.end_all(connection, session.login, now_ms, but=session.id), now_ms)
    audit_login(smart, connection, interaction, "U", session.login, user=session.user, role=session.role or "",
                now_ms=now_ms)
