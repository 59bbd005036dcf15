"""Logins: people's ways in, each standing for nobody until it is bound to a proofed account.

Owns sign-up, what a login signs in with (password, one-time codes, recovery codes), and finding one; refuses a name
that is none, to say whether a name is taken, and to let one address fill the queue of those who wait. Who a login
stands for is ``proofing``'s to say.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, Literal

import apsw
import orjson

from gateway.audit import AuditEntry
from gateway.errors import KeyDestroyed, NotFound, Throttled, Unprocessable
from gateway.smart import one_time_codes, passwords, sessions
from gateway.smart.issuer import Smart
from gateway.smart.sealing import open_sealed, seal

FORGOTTEN_MS: Final = 90 * 24 * 3_600_000
"""How long a sign-up waits for somebody to decide on it."""
WAITING_MAX: Final = 2_000
"""Sign-ups that may wait at once, of those nobody vouches for."""
SHARE_MAX: Final = 100
"""... from one address, of IPv6 one /48: a hospital's own terminals share one."""
_AT_ONCE: Final = 500
WANTED: Final = ("patient", "clinician")
LoginState = Literal["waiting", "verified", "rejected", "closed"]
_FULL_RETRY_S: Final = 3_600.0
_NAME: Final = re.compile(r"[\w.@+\-]{3,100}")
_COLUMNS: Final = ("id, name, shown, wanted, state, fhir_user, reason, password, totp, totp_on, totp_step, created_ms, "
                   "decided_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A way in. ``password``: a PHC string; ``totp``: the sealed seed, which counts once ``totp_on``."""

    id: str
    name: str
    shown: str
    wanted: str
    state: LoginState
    fhir_user: str | None
    reason: str | None
    password: str | None = field(repr=False)
    totp: bytes | None = field(repr=False)
    totp_on: bool
    totp_step: int
    created_ms: int
    decided_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUp:
    """What somebody says of themselves. ``birth_date``: YYYY-MM-DD; ``identifier``: of a card or register."""

    name: str
    shown: str
    wanted: str
    birth_date: str
    identifier: str


def fold(name: str) -> str:
    """The one form of a login name, however it is typed."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def find_login(connection: apsw.Connection, login_id: str) -> Login | None:
    """A login by its id."""
    return _one(connection, "id=?", login_id)


def find_by_name(connection: apsw.Connection, name: str) -> Login | None:
    """A login by what was typed."""
    return _one(connection, "name=?", fold(name))


def logins_of(connection: apsw.Connection, fhir_user: str) -> list[Login]:
    """The verified logins of an account, the oldest first."""
    return [_login(row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM login WHERE fhir_user=? AND state='verified' "  # noqa: S608
        "ORDER BY created_ms, id", (fhir_user,)).fetchall()]


def checked(asked: SignUp) -> SignUp:
    """``asked`` in its one form. Raises Unprocessable."""
    name, shown, identifier = fold(asked.name), " ".join(asked.shown.split()), asked.identifier.strip()
    if _NAME.fullmatch(name) is None:
        raise Unprocessable("a login name has 3 to 100 letters, digits or any of . _ @ + -")
    if not shown or len(shown) > 200 or not shown.isprintable():
        raise Unprocessable("your name has at most 200 printable characters")
    if asked.wanted not in WANTED:
        raise Unprocessable("say whether you are a patient or a clinician")
    try:
        born = date.fromisoformat(asked.birth_date)
    except ValueError:
        raise Unprocessable("a birth date is written YYYY-MM-DD") from None
    if born.year < 1850 or len(asked.birth_date) != 10:
        raise Unprocessable("a birth date is written YYYY-MM-DD")
    if not identifier or len(identifier) > 100 or not identifier.isprintable():
        raise Unprocessable("the number has at most 100 printable characters")
    return SignUp(name=name, shown=shown, wanted=asked.wanted, birth_date=asked.birth_date, identifier=identifier)


def check_room(connection: apsw.Connection, source: bytes) -> None:
    """Raises Throttled while too many wait, from ``source`` or altogether."""
    waiting, own = next(connection.execute(
        "SELECT count(source), coalesce(sum(source IS ?), 0) FROM login WHERE state='waiting'", (source,)))
    if int(str(own)) >= SHARE_MAX:
        raise Throttled("too many sign-ups from here wait to be looked at: ask the hospital's records office",
                        retry_s=_FULL_RETRY_S)
    if int(str(waiting)) >= WAITING_MAX:
        raise Throttled("too many sign-ups wait to be looked at: try again later, or ask the hospital's records office",
                        retry_s=_FULL_RETRY_S)


def sign_up(connection: apsw.Connection, smart: Smart, asked: SignUp, *, password_hash: str | None,
            source: bytes | None, now_ms: int) -> str | None:
    """Make a login that waits for proofing; its id, or None when the name is taken (say so to nobody).

    ``source``: where it comes from (``lockout.source_of``); None for who is vouched for. Raises Throttled, whatever the
    name.
    """
    if source is not None:
        check_room(connection, source)
    if find_by_name(connection, asked.name) is not None:
        return None
    login_id = secrets.token_hex(16)
    matching = seal(smart, orjson.dumps({"birth_date": asked.birth_date, "identifier": asked.identifier}),
                    _matching_place(login_id))
    connection.execute(
        "INSERT INTO login (id,name,shown,wanted,state,matching,password,source,created_ms) "
        "VALUES (?,?,?,?,'waiting',?,?,?,?)",
        (login_id, asked.name, asked.shown, asked.wanted, matching, password_hash, source, now_ms))
    audit_login(smart, connection, "sign-up", "C", login_id, role=asked.wanted, now_ms=now_ms)
    return login_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the operator gives a login: ``name`` folded, ``password`` hashed, ``seed`` of codes its role needs."""

    name: str
    password: str = field(repr=False)
    seed: bytes | None = field(repr=False)


def prepare(*, name: str, password: str, role: str) -> Prepared:
    """Check and hash, before the transaction: it costs what Argon2id does. Raises Unprocessable."""
    folded = fold(name)
    if _NAME.fullmatch(folded) is None:
        raise Unprocessable("a login name has 3 to 100 letters, digits or any of . _ @ + -")
    passwords.check_new_password(password, login_name=folded)
    return Prepared(name=folded, password=passwords.hash_password(password),
                    seed=None if role in sessions.FACTOR_FREE else one_time_codes.new_seed())


def set_by_operator(smart: Smart, *, name: str, fhir_user: str, role: str, shown: str, password: str) -> str | None:
    """Give an account a login of this name, or give the login a new password and new codes in place of all it signed in
    with, as the operator.

    Returns the ``otpauth://`` URI of its one-time codes, told once, where the role needs them; the person's sessions
    end. Raises Unprocessable.
    """
    prepared = prepare(name=name, password=password, role=role)

    def work(connection: apsw.Connection) -> None:
        known, now_ms = find_by_name(connection, prepared.name), smart.now_ms()
        login_id = put_prepared(connection, smart, prepared, fhir_user=fhir_user, role=role, shown=shown, now_ms=now_ms)
        sessions.end_all(connection, login_id, now_ms)
        smart.audit_operator(connection, "login", "C" if known is None else "U", fhir_user, role, now_ms)
    smart.database.transact(work)
    return None if prepared.seed is None else one_time_codes.otpauth_uri(
        prepared.seed, name=prepared.name, issuer=smart.settings.hospital_name)


def put_prepared(connection: apsw.Connection, smart: Smart, prepared: Prepared, *, fhir_user: str, role: str,
                 shown: str, now_ms: int) -> str:
    """Make or overwrite the login inside the open transaction; its id. Raises Unprocessable."""
    known = find_by_name(connection, prepared.name)
    if known is not None and known.fhir_user != fhir_user:
        raise Unprocessable("this login name is another person's")
    login_id = known.id if known is not None else secrets.token_hex(16)
    sealed = None if prepared.seed is None else seal(smart, prepared.seed, totp_place(login_id))
    connection.execute(
        "INSERT INTO login (id,name,shown,wanted,state,fhir_user,password,totp,totp_on,created_ms,decided_ms,"
        "decided_by) VALUES (?,?,?,?,'verified',?,?,?,?,?,?,'cli') ON CONFLICT (id) DO UPDATE SET "
        "shown=excluded.shown, wanted=excluded.wanted, state='verified', password=excluded.password, "
        "totp=excluded.totp, totp_on=excluded.totp_on, totp_step=0",
        (login_id, prepared.name, shown, role, fhir_user, prepared.password, sealed, int(sealed is not None), now_ms,
         now_ms))
    forget_factors(connection, login_id)
    return login_id


def forget_factors(connection: apsw.Connection, login_id: str) -> tuple[int, int]:
    """Delete the passkeys, upstream identities and recovery codes of a login; how many of the first two."""
    gone = []
    for table in ("passkey", "upstream_identity", "recovery_code"):
        connection.execute(f"DELETE FROM {table} WHERE login=?", (login_id,))  # noqa: S608
        gone.append(connection.changes())
    return gone[0], gone[1]


def matching_of(connection: apsw.Connection, smart: Smart, login_id: str) -> tuple[str, str]:
    """(birth date, identifier) a waiting login gave; both empty once it was decided. Raises NotFound."""
    row: tuple[Any, ...]
    for row in connection.execute("SELECT matching FROM login WHERE id=?", (login_id,)).fetchall():
        if row[0] is None:
            return "", ""
        facts = orjson.loads(open_sealed(smart, row[0], _matching_place(login_id)))
        return str(facts["birth_date"]), str(facts["identifier"])
    raise NotFound("there is no such login")


def factors_of(connection: apsw.Connection, login: Login) -> tuple[str, ...]:
    """What it may sign in with: "pwd", "otp", "hwk" (passkeys), "oidc"."""
    found = ["pwd"] if login.password is not None else []
    if login.totp_on:
        found.append("otp")
    for method, table in (("hwk", "passkey"), ("oidc", "upstream_identity")):
        if connection.execute(f"SELECT 1 FROM {table} WHERE login=? LIMIT 1", (login.id,)).fetchall():  # noqa: S608
            found.append(method)
    return tuple(found)


def seed_of(smart: Smart, login: Login) -> bytes | None:
    """The seed of its one-time codes, whether in use yet or not."""
    return None if login.totp is None else open_sealed(smart, login.totp, totp_place(login.id))


def recovery_codes_left(connection: apsw.Connection, login_id: str) -> int:
    """How many recovery codes were not used yet."""
    return int(str(connection.execute("SELECT count(*) FROM recovery_code WHERE login=? AND used_ms IS NULL",
                                      (login_id,)).get))


def take_code(connection: apsw.Connection, smart: Smart, login: Login, code: str, now_ms: int) -> bool:
    """Whether ``code`` is a one-time or a recovery code of the login, taken now and never again."""
    seed = seed_of(smart, login)
    if seed is not None:
        step = one_time_codes.taken_step(seed, code, now_s=now_ms / 1_000, after_step=login.totp_step)
        if step is not None:
            connection.execute("UPDATE login SET totp_step=? WHERE id=? AND totp_step<?", (step, login.id, step))
            return bool(connection.changes())
    hashed = one_time_codes.recovery_hash(login.id, code)
    if hashed is None:
        return False
    connection.execute("UPDATE recovery_code SET used_ms=? WHERE login=? AND hash=? AND used_ms IS NULL",
                       (now_ms, login.id, hashed))
    return bool(connection.changes())


def audit_login(smart: Smart, connection: apsw.Connection, interaction: str, action: str, login_id: str, *,
                now_ms: int, role: str, user: str | None = None, outcome: str = "0", reason: str | None = None) -> None:
    """One row about a login, to the patient's own audit where it is a patient's."""
    patient = user.removeprefix("Patient/") if user is not None and user.startswith("Patient/") else None
    entry = AuditEntry(
        time_ms=now_ms, action=action, interaction=interaction, outcome=outcome,
        what=(f"login {login_id}",) if login_id else (), client="portal", user=user, role=role or "unknown",
        purpose="HOPERAT" if user is None else {"patient": "PATRQT", "delegate": "FAMRQT"}.get(role, "HOPERAT"),
        reason=reason)
    try:
        smart.audit(connection, entry, patient)
    except KeyDestroyed:  # an erased patient has no audit of their own any more
        smart.audit(connection, entry, None)


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Delete sign-ups nobody decided on in time, with all that hangs on them; how many rows went."""
    before = connection.total_changes()
    for (login_id,) in connection.execute("SELECT id FROM login WHERE state='waiting' AND created_ms<? LIMIT ?",
                                          (now_ms - FORGOTTEN_MS, _AT_ONCE)).fetchall():
        forget_factors(connection, str(login_id))
        connection.execute("DELETE FROM session WHERE login=?", (login_id,))
        connection.execute("DELETE FROM login WHERE id=?", (login_id,))
    return connection.total_changes() - before


def totp_place(login_id: str) -> str:
    """What binds a sealed seed to its login."""
    return f"totp {login_id}"


def _matching_place(login_id: str) -> str:
    return f"matching {login_id}"


def _one(connection: apsw.Connection, where: str, value: str) -> Login | None:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM login WHERE {where}", (value,)).fetchall()  # noqa: S608
    return _login(rows[0]) if rows else None


def _login(row: tuple[Any, ...]) -> Login:
    return Login(id=row[0], name=row[1], shown=row[2], wanted=row[3], state=row[4], fhir_user=row[5], reason=row[6],
                 password=row[7], totp=row[8], totp_on=bool(row[9]), totp_step=row[10], created_ms=row[11],
                 decided_ms=row[12])
