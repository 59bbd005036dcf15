"""Signing in and out: the acts, each audited, each giving a session or the one refusal.

Owns what a password with its code, a passkey, a wallet or the identity provider is worth; refuses all alike: an unknown
login, a wrong password, a wrong code, a running delay and a missing second factor have one answer, after the same work.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from gateway.errors import Throttled, Unprocessable
from gateway.smart import ceremonies, lockout, logins, passkeys, passwords, sessions, wallet_sign_in
from gateway.smart.accounts import find_account, wallet_address
from gateway.smart.authorization import revoke_session
from gateway.smart.issuer import Smart
from gateway.smart.logins import Login, audit_login
from gateway.smart.sessions import Session
from gateway.smart.upstream import Identity, login_of

WALLET_PATH: Final = "/portal/sign-in"
REFUSED: Final = ("That did not work. Check the name, the password and the code, or wait a little and try again. "
                  "Staff also need a code, or sign in with a passkey.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """What a request says of itself. ``visit``: the cookie its form was bound to; ``cookie``: of a session it had."""

    visit: str = field(repr=False)
    cookie: str | None = field(repr=False)
    known_device: str = field(repr=False)
    address: str | None
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """The session's cookie, and what the browser may keep to be known again (after a password alone)."""

    cookie: str = field(repr=False)
    known_device: str | None = field(repr=False, default=None)


def by_password(smart: Smart, name: str, password: str, code: str, browser: Browser) -> SignedIn | None:
    """Sign in by password, and by code where the login has them; None when refused. Costs what Argon2id does.

    Raises Throttled when the source has to wait, whomever it asks for.
    """
    now_ms, folded = smart.now_ms(), logins.fold(name)[:200]
    login = logins.find_by_name(smart.database.reader, folded)
    counted = _counted(smart, folded, login, browser)
    for one in counted:
        # A source that tries and tries does not keep everybody's passwords waiting for its own.
        if one.shared and (wait_s := lockout.wait_s(smart.database.reader, one, now_ms)):
            raise Throttled("too many attempts from this address: wait a little", retry_s=wait_s)
    admitted = smart.database.transact(lambda connection: lockout.reserve(connection, counted, now_ms))
    # The same work whoever it is and whatever is known of them: a delay, too, takes the time of a password.
    right = passwords.verify_password(login.password if login is not None and admitted else None, password)
    rehashed = passwords.hash_password(password) if right and login is not None and login.password is not None and \
        passwords.needs_rehash(login.password) else None

    def work(connection: apsw.Connection) -> SignedIn | None:
        if not right or login is None:
            reason = "wrong-password" if login is not None else "unknown-login"
            _refuse(smart, connection, login, reason if admitted else "delayed", now_ms)
            return None
        fresh = logins.find_login(connection, login.id)
        if fresh is None or fresh.password != login.password:
            _refuse(smart, connection, login, "wrong-password", now_ms)
            return None
        methods = ["pwd"]
        if fresh.totp_on:
            if not logins.take_code(connection, smart, fresh, code, now_ms):
                _refuse(smart, connection, login, "wrong-code", now_ms)
                return None
            methods.append("otp")
        cookie = _start(smart, connection, fresh, methods, browser, now_ms)
        if cookie is None:
            return None
        lockout.succeeded(connection, counted)
        if rehashed is not None:
            connection.execute("UPDATE login SET password=? WHERE id=?", (rehashed, fresh.id))
        return SignedIn(cookie=cookie, known_device=_known_device(smart, fresh.id))
    return smart.database.transact(work)


def by_passkey(smart: Smart, credential: Any, browser: Browser) -> SignedIn | None:
    """Sign in by a passkey; None when refused. A delay of the password does not hold it up."""
    return _by(smart, browser, ("hwk",), lambda connection, now_ms: logins.find_login(connection, passkeys.login_of(
        connection, smart, bound=browser.visit, credential=credential, now_ms=now_ms)))


def begin_wallet(smart: Smart, kind: ceremonies.Kind, address: str, *, chain_id: int, bound: str) -> str:
    """The EIP-4361 message a wallet is to sign, its nonce ``bound``'s, once. Raises Unprocessable."""
    nonce, now_ms = wallet_sign_in.new_nonce(), smart.now_ms()
    statement = ("Sign in to your health records." if kind == "wallet-use" else
                 "Register this wallet as yours with the hospital. It will sign what you permit.")
    text = wallet_sign_in.message_text(
        origin=sessions.web_origin(smart.settings), path=WALLET_PATH, address=wallet_address(address),
        statement=statement, chain_id=chain_id, nonce=nonce, now_ms=now_ms)
    smart.database.transact(lambda connection: ceremonies.begin(
        connection, smart, kind, nonce, bound=bound, now_ms=now_ms))
    return text


def wallet_of(connection: apsw.Connection, smart: Smart, kind: ceremonies.Kind, text: str, signature: str, *,
              chain_id: int, bound: str, now_ms: int) -> str:
    """The address that signed the message, inside the open transaction. Raises Unprocessable."""
    message = wallet_sign_in.parse_message(text)
    ceremonies.finish(connection, smart, kind, message.nonce, bound=bound, now_ms=now_ms)
    wallet_sign_in.check_message(message, origin=sessions.web_origin(smart.settings), path=WALLET_PATH,
                                 chain_id=chain_id, now_ms=now_ms)
    wallet_sign_in.check_signature(text, signature, message.address)
    return message.address


def by_wallet(smart: Smart, text: str, signature: str, *, chain_id: int, browser: Browser) -> SignedIn | None:
    """Sign in by the wallet registered with an account; None when refused."""
    def login(connection: apsw.Connection, now_ms: int) -> Login | None:
        address = wallet_of(connection, smart, "wallet-use", text, signature, chain_id=chain_id, bound=browser.visit,
                            now_ms=now_ms)
        people = connection.execute("SELECT fhir_user FROM account WHERE wallet=? AND closed_ms IS NULL",
                                    (address,)).fetchall()
        if len(people) != 1:
            return None
        return next(iter(logins.logins_of(connection, str(people[0][0]))), None)
    return _by(smart, browser, ("wallet",), login)


def by_upstream(smart: Smart, who: Identity, browser: Browser) -> SignedIn | None:
    """Sign in as whom the hospital's identity provider named; None when refused."""
    return _by(smart, browser, ("oidc",), lambda connection, _: logins.find_login(
        connection, login_of(connection, who) or ""), who.auth_time_ms)


def change_password(smart: Smart, session: Session, old: str, new: str) -> bool:
    """Set a password, the old one shown first where there is one; the login's other sessions end.

    False when the old one is wrong or may not be tried now. Raises Unprocessable, Unauthenticated (signed out since).
    """
    login = logins.find_login(smart.database.reader, session.login)
    if login is None:
        return False
    passwords.check_new_password(new, login_name=login.name)
    counted, now_ms = (lockout.by_login(smart, f"password of {login.id}"),), smart.now_ms()
    if login.password is not None:
        admitted = smart.database.transact(lambda connection: lockout.reserve(connection, counted, now_ms))
        if not passwords.verify_password(login.password if admitted else None, old):
            return False
    hashed = passwords.hash_password(new)

    def work(connection: apsw.Connection) -> bool:
        sessions.require_open(connection, session.id)
        connection.execute("UPDATE login SET password=? WHERE id=? AND password IS ?",
                           (hashed, login.id, login.password))
        if not connection.changes():
            return False
        lockout.succeeded(connection, counted)
        revoke_session(connection, sessions.end_all(connection, login.id, now_ms, but=session.id), now_ms)
        audit_login(smart, connection, "password-changed", "U", login.id, user=session.user, role=session.role or "",
                    now_ms=now_ms)
        return True
    return smart.database.transact(work)


def sign_out(smart: Smart, session: Session, *, ids: Sequence[str] | None = None) -> None:
    """End sessions of a login (all of them without ``ids``), and what apps were given for as long as they lasted."""
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        if ids is None:
            ended: tuple[str, ...] = sessions.end_all(connection, session.login, now_ms)
        else:
            ended = tuple(id_ for id_ in ids if sessions.end_session(connection, id_, now_ms, login=session.login))
        revoke_session(connection, ended, now_ms)
        audit_login(smart, connection, "sign-out", "E", session.login, user=session.user, role=session.role or "",
                    now_ms=now_ms, reason=f"{len(ended)} sessions ended")
    smart.database.transact(work)


def _by(smart: Smart, browser: Browser, methods: Sequence[str],
        find: Callable[[apsw.Connection, int], Login | None], auth_time_ms: int | None = None) -> SignedIn | None:
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> SignedIn | None:
        try:
            login = find(connection, now_ms)
        except Unprocessable as error:
            _refuse(smart, connection, None, f"{methods[0]}: {error}", now_ms)
            return None
        if login is None:
            _refuse(smart, connection, None, f"{methods[0]}: unknown-login", now_ms)
            return None
        cookie = _start(smart, connection, login, methods, browser, now_ms, auth_time_ms)
        return None if cookie is None else SignedIn(cookie=cookie)
    return smart.database.transact(work)


def _start(smart: Smart, connection: apsw.Connection, login: Login, methods: Sequence[str], browser: Browser,
           now_ms: int, auth_time_ms: int | None = None) -> str | None:
    """A session, unless the account is closed or its role needs another factor than those shown."""
    role = login.wanted
    if login.state == "closed":
        _refuse(smart, connection, login, "closed", now_ms)
        return None
    if login.state == "verified":
        account = find_account(connection, login.fhir_user or "")
        if account is None or account.closed_ms is not None:
            _refuse(smart, connection, login, "closed", now_ms)
            return None
        if not sessions.is_enough(account.role, methods):
            _refuse(smart, connection, login, "needs-second-factor", now_ms)
            return None
        role = account.role
    if browser.cookie:
        # Signed in anew in the same browser: what the session before it gave to apps ends with it.
        before = sessions.id_of(connection, smart, browser.cookie)
        revoke_session(connection, (before,) if before else (), now_ms)
    cookie = sessions.start_session(connection, smart, login=login.id, methods=methods, device=browser.device,
                                    previous=browser.cookie, now_ms=now_ms, auth_time_ms=auth_time_ms)
    audit_login(smart, connection, "sign-in", "E", login.id, user=login.fhir_user, role=role, now_ms=now_ms,
                reason=f"by {' '.join(methods)}")
    return cookie


def _refuse(smart: Smart, connection: apsw.Connection, login: Login | None, reason: str, now_ms: int) -> None:
    # The name that was typed is kept nowhere: it may be a password, typed into the wrong field.
    audit_login(smart, connection, "sign-in", "E", login.id if login is not None else "", outcome="4",
                user=login.fhir_user if login is not None else None,
                role=login.wanted if login is not None else "", now_ms=now_ms, reason=reason)


def _counted(smart: Smart, folded: str, login: Login | None, browser: Browser) -> tuple[lockout.Counted, ...]:
    device, _, mac = browser.known_device.partition(".")
    if login is not None and device and sessions.same(mac, _device_mac(smart, login.id, device)):
        return (lockout.by_device(smart, login.id, device),)
    return lockout.by_login(smart, folded), lockout.by_source(smart, browser.address)


def _known_device(smart: Smart, login_id: str) -> str:
    device = secrets.token_hex(16)
    return f"{device}.{_device_mac(smart, login_id, device)}"


def _device_mac(smart: Smart, login_id: str, device: str) -> str:
    return smart.tokens.hash(f"device {login_id} {device}").hex()
