"""The one error tree of the gateway.

Owns every exception the rooms raise on purpose; refuses HTTP status codes (``web/errors.py`` alone maps them).

    GatewayError
    ├── InputRefused            the client's input; carries OperationOutcome issues
    │   ├── Malformed           not JSON, duplicate keys, nesting, encoding
    │   ├── Invalid             a resource that breaks the FHIR rules
    │   ├── BadSearch           a query string that cannot be run as asked
    │   ├── FHIRPathError       an expression that does not parse, or cannot be evaluated
    │   ├── Unprocessable       well-formed, yet cannot be applied (dangling urn:uuid, bad signature)
    │   ├── TooCostly           a request beyond a stated limit
    │   ├── TooLarge            a body over the limit
    │   ├── UnsupportedMedia    content type not spoken here
    │   └── NotAcceptable       no representation the client accepts
    ├── NotFound                absent, or not permitted (they look the same)
    ├── Gone                    deleted
    ├── MethodNotAllowed        a door that does not exist on this resource
    ├── Conflict                the world moved; the request may be repeated
    │   └── Moved               between a decision and its commit: decide again
    ├── PreconditionFailed      If-Match, If-None-Exist with several matches
    ├── Unauthenticated         no token, or one that is unknown, expired, revoked
    ├── Forbidden               outside the token's scopes (says nothing of existence)
    ├── Throttled               too much of one caller's at once; later it may be asked again
    ├── OAuthError              RFC 6749 error code and description
    ├── IntegrityBroken         a block, key, proof or chain fact that is not what it must be
    │   ├── BlockCorrupt        bytes do not hash to their Cid, or do not open
    │   ├── WrongPlacement      a true block found where another belongs
    │   └── KeyDestroyed        the key was erased
    ├── Unavailable             a part that should answer does not
    │   ├── ChainUnavailable
    │   ├── BlobUnavailable
    │   ├── TookTooLong
    │   └── StoreBusy
    ├── ChainReverted           a contract refused; carries the error name and arguments
    ├── TransactionRefused      the node will not take a transaction; carries the reason
    └── Misconfigured           settings, files or contracts that cannot work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["fatal", "error", "warning", "information"]


@dataclass(frozen=True, slots=True)
class Issue:
    """One OperationOutcome.issue: ``code`` is from issue-type, ``expression`` a FHIRPath to the place."""

    severity: Severity
    code: str
    diagnostics: str
    expression: str | None = None


class GatewayError(Exception):
    """Root of the tree. ``expression``: the place in the input it is about, where one entry of many failed."""

    expression: str | None = None


class InputRefused(GatewayError):
    """The client's input is refused; ``issues`` is never empty."""

    def __init__(self, issues: Sequence[Issue] | Issue | str, *, code: str = "invalid",
                 expression: str | None = None) -> None:
        if isinstance(issues, str):
            issues = (Issue("error", code, issues, expression),)
        elif isinstance(issues, Issue):
            issues = (issues,)
        self.issues: tuple[Issue, ...] = tuple(issues)
        super().__init__("; ".join(issue.diagnostics for issue in self.issues))


class Malformed(InputRefused):
    """Not JSON as RFC 8259 and FHIR have it."""


class Invalid(InputRefused):
    """A resource that breaks structure, cardinality, binding, format or invariant."""


class BadSearch(InputRefused):
    """A search that cannot be run as asked."""


class FHIRPathError(InputRefused):
    """An expression that does not parse, or an operation its values do not allow."""


class Unprocessable(InputRefused):
    """Well-formed input that cannot be applied."""


class TooCostly(InputRefused):
    """Beyond a stated limit of work."""


class TooLarge(InputRefused):
    """A body over the size limit."""


class UnsupportedMedia(InputRefused):
    """A content type the door does not speak."""


class NotAcceptable(InputRefused):
    """No representation the client accepts."""


class NotFound(GatewayError):
    """Absent, or not permitted: both look the same."""


class Gone(GatewayError):
    """Deleted; ``version_id`` names the deleting version."""

    def __init__(self, message: str, *, version_id: int) -> None:
        self.version_id = version_id
        super().__init__(message)


class MethodNotAllowed(GatewayError):
    """A door that does not exist on this resource; ``allowed`` are the methods that do."""

    def __init__(self, message: str, allowed: Sequence[str] = ("GET", "HEAD")) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class Conflict(GatewayError):
    """The world moved between check and write."""


class Moved(Conflict):
    """A revocation or another write was committed between decision and commit: decide again."""


class PreconditionFailed(GatewayError):
    """A condition the client set does not hold."""


class Unauthenticated(GatewayError):
    """No token, or one that is unknown, expired or revoked.

    ``error`` is RFC 6750's code, None when no token was sent; ``reason`` and ``token`` (its id, where there is
    one) are for the audit and never shown.
    """

    def __init__(self, message: str, *, error: str | None = None, reason: str = "absent",
                 token: str | None = None) -> None:
        self.error = error
        self.reason = reason
        self.token = token
        super().__init__(message)


class Forbidden(GatewayError):
    """Outside the token's scopes."""


class Throttled(GatewayError):
    """Too much of one caller's waits or runs already, or was asked too fast; ``retry_s``: when to ask again."""

    def __init__(self, message: str, *, retry_s: float = 30.0) -> None:
        self.retry_s = retry_s
        super().__init__(message)


class OAuthError(GatewayError):
    """RFC 6749 section 5.2: ``error`` code and human ``description``."""

    def __init__(self, error: str, description: str) -> None:
        self.error = error
        self.description = description
        super().__init__(f"{error}: {description}")


class IntegrityBroken(GatewayError):
    """A block, key, proof or chain fact is not what it must be."""


class BlockCorrupt(IntegrityBroken):
    """Bytes do not hash to their Cid, or do not open under their key."""


class WrongPlacement(IntegrityBroken):
    """A true block found where another belongs."""


class KeyDestroyed(IntegrityBroken):
    """The key that would open this was erased."""


class Unavailable(GatewayError):
    """A part that should answer does not."""


class ChainUnavailable(Unavailable):
    """The chain node does not answer, or not in time."""


class BlobUnavailable(Unavailable):
    """The block store does not answer, or does not hold the block."""


class TookTooLong(Unavailable):
    """The work for a request was ended at its time limit."""


class StoreBusy(Unavailable):
    """The writer lock was not had in time."""


class ChainReverted(GatewayError):
    """A contract refused: ``name`` of its error and the ``arguments`` it carried."""

    def __init__(self, name: str, arguments: tuple[object, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        super().__init__(f"{name}{arguments!r}")


class TransactionRefused(GatewayError):
    """The node will not take a transaction.

    ``reason``: ``nonce-too-low``, ``underpriced``, ``insufficient-funds`` or ``other``.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")


class Misconfigured(GatewayError):
    """Settings, files or contracts that cannot work; the message says how to mend it."""
