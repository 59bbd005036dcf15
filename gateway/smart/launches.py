"""Launches: the context an EHR hands to an app it starts.

Owns the launch handle (opened, told once, taken once) and what a context may hold; refuses a handle that is unknown,
used, expired or another client's with one and the same answer, and what SMART keeps out of ``fhirContext``. Whether
the patient or encounter exists, or may be seen, is neither asked nor told here: every use of a token is decided.
https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html#launch-app-ehr-launch,
https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html#fhircontext
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import apsw

from gateway.audit import AuditEntry
from gateway.errors import OAuthError, Throttled
from gateway.smart.issuer import Smart
from gateway.smart.tokens import Secret

PREFIX: Final = "gwl_"
LIFE_MS: Final = 300_000
"""How long a handle waits to be taken."""
_OPEN_MAX: Final = 5_000
"""Handles one opener may have waiting."""
_KEPT_MS: Final = 24 * 3_600_000
"""How long a context is kept after its handle expired: a pending authorization reads it by its id."""
_LENGTH: Final = len(PREFIX) + 43
_CONTEXT_MAX: Final = 20
_CONTEXT_BYTES_MAX: Final = 8_192
_TEXT_MAX: Final = 200
_USER: Final = re.compile(r"(?:Practitioner|Patient|RelatedPerson|Person)/[A-Za-z0-9\-.]{1,64}")
_REFERENCE: Final = re.compile(r"([A-Z][A-Za-z]{1,63})/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]{1,64})?")
_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_ENTRY: Final = frozenset({"reference", "canonical", "identifier", "type", "role"})
_IDENTIFIER: Final = frozenset({"use", "type", "system", "value", "period", "assigner"})
_ON_TOP: Final = frozenset({"Patient", "Encounter"})
_LAUNCH_ROLE: Final = "launch"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchContext:
    """What an EHR launch brings. ``user``: the only person who may take it up, None: whoever signs in.

    ``patient`` and ``encounter`` are references; ``fhir_context`` the objects of SMART's ``fhirContext``.
    """

    id: str
    client: str
    user: str | None
    patient: str | None
    encounter: str | None
    fhir_context: tuple[dict[str, Any], ...]
    need_patient_banner: bool
    intent: str | None
    expires_ms: int

    def is_for(self, user: str | None) -> bool:
        """Whether the person who signed in may take it up."""
        return self.user is None or self.user == user


def open_launch(connection: apsw.Connection, smart: Smart, *, client_id: str, opener: str, role: str, user: str | None,
                patient: str | None, encounter: str | None, fhir_context: Sequence[Mapping[str, Any]],
                need_patient_banner: bool, intent: str | None, now_ms: int) -> Secret:
    """Store a context inside the open transaction; its handle is told here and never again.

    ``opener``: the feed's client id or the person's reference, of ``role``; ``patient`` and ``encounter``: ID or
    Type/ID. Raises OAuthError ``invalid_request`` naming the field, or Throttled.
    """
    patient, encounter = _named("patient", "Patient", patient), _named("encounter", "Encounter", encounter)
    if encounter is not None and patient is None:
        raise OAuthError("invalid_request", "encounter: needs the patient it is about")
    if user is not None and not _USER.fullmatch(user):
        raise OAuthError("invalid_request", "user: is Practitioner/ID, Patient/ID, RelatedPerson/ID or Person/ID")
    if intent is not None and not (0 < len(intent) <= _TEXT_MAX and intent.isprintable()):
        raise OAuthError("invalid_request", f"intent: is printable text of at most {_TEXT_MAX} characters")
    context = json.dumps(check_fhir_context(fhir_context), separators=(",", ":"))
    waiting = connection.execute("SELECT count(*) FROM launch WHERE opener=? AND expires_ms>? AND used_ms IS NULL",
                                 (opener, now_ms)).get
    if int(str(waiting)) >= _OPEN_MAX:
        raise Throttled("too many launches wait to be taken up")
    handle, launch_id = Secret(PREFIX + secrets.token_urlsafe(32)), secrets.token_hex(12)
    connection.execute(
        "INSERT INTO launch (id,hash,client,opener,user,patient,encounter,fhir_context,banner,intent,created_ms,"
        "expires_ms) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        (launch_id, smart.tokens.hash(handle), client_id, opener, user, patient, encounter, context,
         int(need_patient_banner), intent, now_ms, now_ms + LIFE_MS))
    # Under the custodian's key: the patient named may be nobody, and no key is made for nobody.
    smart.audit(connection, AuditEntry(
        time_ms=now_ms, action="E", interaction="launch", outcome="0", what=tuple(filter(None, (patient, encounter))),
        client=client_id, user=opener if "/" in opener else None, role=role, purpose="TREAT"), None)
    return handle


def take_launch(connection: apsw.Connection, smart: Smart, handle: str, client_id: str, now_ms: int) -> LaunchContext:
    """Use the handle up, inside the open transaction, and return its context.

    The caller compares ``user`` with who signs in. Raises OAuthError ``invalid_request``, the same for every handle
    that does not fit; one presented for another client is not used up by it.
    """
    if len(handle) == _LENGTH and handle.startswith(PREFIX):
        hashed = smart.tokens.hash(handle)
        connection.execute("UPDATE launch SET used_ms=? WHERE hash=? AND client=? AND used_ms IS NULL AND expires_ms>?",
                           (now_ms, hashed, client_id, now_ms))
        if connection.changes():
            taken = _launch(connection, "hash", hashed)
            if taken is not None:
                return taken
    raise OAuthError("invalid_request", "launch: the launch is unknown, used, expired or another client's")


def launch_of(connection: apsw.Connection, launch_id: str) -> LaunchContext | None:
    """A context by its ``id`` (not its handle), for as long as it is kept: a day after it expired."""
    return _launch(connection, "id", launch_id)


def sweep_launches(connection: apsw.Connection, now_ms: int) -> int:
    """Delete contexts a day after their handle expired; how many went."""
    connection.execute("DELETE FROM launch WHERE expires_ms<?", (now_ms - _KEPT_MS,))
    return int(connection.changes())


def launch_url(launch_uri: str, issuer: str, handle: str) -> str:
    """Where the EHR sends the browser: the app's registered launch URL with ``iss`` and ``launch``."""
    joined = "&" if urlsplit(launch_uri).query else "?"
    return f"{launch_uri}{joined}{urlencode({'iss': issuer, 'launch': handle})}"


def check_fhir_context(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries as they are kept. Raises OAuthError ``invalid_request`` naming the first that cannot be."""
    if len(entries) > _CONTEXT_MAX:
        raise OAuthError("invalid_request", f"fhirContext: holds at most {_CONTEXT_MAX} entries")
    for number, entry in enumerate(entries):
        wrong = _wrong(entry)
        if wrong is not None:
            raise OAuthError("invalid_request", f"fhirContext[{number}]: {wrong}")
    kept = [dict(entry) for entry in entries]
    try:
        size = len(json.dumps(kept, allow_nan=False).encode())
    except (ValueError, RecursionError):
        size = _CONTEXT_BYTES_MAX + 1
    if size > _CONTEXT_BYTES_MAX:
        raise OAuthError("invalid_request", f"fhirContext: holds at most {_CONTEXT_BYTES_MAX} bytes")
    return kept


def _wrong(entry: object) -> str | None:
    """What is wrong with one entry."""
    if not isinstance(entry, Mapping):
        return "is an object"
    if entry.keys() - _ENTRY:
        return "holds reference, canonical, identifier, type and role alone"
    if not entry.keys() & {"reference", "canonical", "identifier"}:
        return "needs a reference, a canonical or an identifier"
    types = set()
    if "reference" in entry:
        match = _REFERENCE.fullmatch(entry["reference"]) if isinstance(entry["reference"], str) else None
        if match is None:
            return "reference is relative: Type/ID"
        types.add(match[1])
    if "type" in entry:
        if not isinstance(entry["type"], str) or not re.fullmatch(r"[A-Z][A-Za-z]{1,63}", entry["type"]):
            return "type is a resource type"
        types.add(entry["type"])
    if len(types) > 1:
        return "type is not that of the reference"
    if "canonical" in entry and not _is_uri(str(entry["canonical"]).partition("|")[0]):
        return "canonical is an absolute URI"
    if "identifier" in entry and not _is_identifier(entry["identifier"]):
        return "identifier is an Identifier with a value"
    role = entry.get("role", _LAUNCH_ROLE)
    if not isinstance(role, str) or not (role == _LAUNCH_ROLE or _is_uri(role)):
        return "role is launch or an absolute URI"
    # SMART 2.2: Patient and Encounter stand on top of the token's answer, here only in a role of their own.
    if types & _ON_TOP and role == _LAUNCH_ROLE:
        return "Patient and Encounter have parameters of their own, and stand here only with a role other than launch"
    return None


def _is_identifier(value: object) -> bool:
    return (isinstance(value, Mapping) and not value.keys() - _IDENTIFIER
            and isinstance(value.get("value"), str) and 0 < len(value["value"]) <= _TEXT_MAX
            and ("system" not in value or (isinstance(value["system"], str) and _is_uri(value["system"]))))


def _is_uri(text: str) -> bool:
    return len(text) <= 2_000 and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.\-]*:[\x21-\x7e]+", text) is not None


def _named(field: str, type_: str, value: str | None) -> str | None:
    if value is None:
        return None
    logical = value.removeprefix(f"{type_}/")
    if not _ID.fullmatch(logical):
        raise OAuthError("invalid_request", f"{field}: is ID or {type_}/ID")
    return f"{type_}/{logical}"


def _launch(connection: apsw.Connection, key: str, value: str | bytes) -> LaunchContext | None:
    row: tuple[Any, ...] | None = next(connection.execute(
        "SELECT id, client, user, patient, encounter, fhir_context, banner, intent, expires_ms FROM launch "  # noqa: S608
        f"WHERE {key}=?", (value,)), None)
    if row is None:
        return None
    return LaunchContext(id=row[0], client=row[1], user=row[2], patient=row[3], encounter=row[4],
                         fhir_context=tuple(json.loads(row[5])), need_patient_banner=bool(row[6]), intent=row[7],
                         expires_ms=row[8])
