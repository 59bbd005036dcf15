"""Grant: what one token may do, and for whom.

Owns the value the token lookup makes and the decision takes; refuses nothing: what does not fit together
(a ``user/`` scope without a user) simply admits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.access.scopes import ScopeSet

ClientKind = Literal["feed", "app", "backend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a token may do.

    ``client_kind``: this hospital's own registered system client (feed), an app with a person before it, or a
    foreign system (backend). ``user``: ``Practitioner/1``, ``Patient/1``, ``RelatedPerson/1`` or None.
    ``patient``: the launch context; for a delegate, the patient represented; for a broken glass, whose.
    ``grantees``: every reference a patient may name to reach this holder: the user, their organisations, the
    app's ``Device/<client>``, this hospital's Organization. ``purpose``: a v3-ActReason code.
    A delegate's token ends, at the latest, with the mandate.
    """

    token_id: str
    client_id: str
    client_kind: ClientKind
    user: str | None
    role: str
    scopes: ScopeSet
    patient: str | None
    purpose: str
    grantees: tuple[str, ...]
    expires_ms: int
    break_glass_reason: str | None = None
    minted_by_operator: bool = False

    @property
    def permitted_as(self) -> tuple[str, ...]:
        """Which of ``grantees`` a permit lets in. With a person before it, an app is not: what one patient lets it do
        is no other user's to have (confused deputy). A deny that names the app counts for whoever uses it.
        """
        return tuple(one for one in self.grantees if self.user is None or not one.startswith("Device/"))

    @property
    def self_patient(self) -> str | None:
        """Whose own records these are: the patient's, or the delegate's principal's."""
        if self.role == "patient" and self.user is not None and self.user.startswith("Patient/"):
            return self.user
        if self.role == "delegate" and self.user is not None:
            return self.patient
        return None

    @property
    def launch_patient(self) -> str | None:
        """The patient of ``patient/`` scopes; a patient's own token needs no launch to know."""
        return self.patient or self.self_patient
