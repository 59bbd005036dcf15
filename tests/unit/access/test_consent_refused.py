"""Only the gateway says why the chain refused a grant (``gateway/FORMATS.md``, Consent)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.access.consent_refused import URL, claimed, telling

OURS = {"url": URL, "valueCode": "SignatureExpired"}
OTHER = {"url": "http://example.org/other", "valueString": "x"}


def consent(*extensions: Any, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Consent", "status": "proposed", **({"extension": list(extensions)} if extensions else {}),
            **elements}


def test_what_the_gateway_wrote_may_come_back_as_it_was_or_be_left_out() -> None:
    old = telling(consent(OTHER), "SignatureExpired")
    assert old["extension"] == [OTHER, OURS]
    for new in (old, consent(OURS, OTHER), consent(OTHER), consent()):
        assert claimed(old, new) is None
    assert telling(old, None) == consent(OTHER)
    assert telling(telling(consent(), "x"), None) == consent()


@pytest.mark.parametrize(("old", "new", "place"), [
    (None, consent(OURS), "Consent.extension[0].url"),
    (consent(OTHER), consent(OTHER, OURS), "Consent.extension[1].url"),
    (consent(OURS), consent(OURS, OURS), "Consent.extension[1].url"),
    (consent(OURS), consent({**OURS, "valueCode": "NonceUsed"}), "Consent.extension[0].url"),
    (consent(OURS), consent(modifierExtension=[OURS]), "Consent.modifierExtension[0].url"),
    (consent(OURS), consent(provision={"extension": [OURS]}), "Consent.provision.extension[0].url"),
    (consent(OURS), consent({**OTHER, "extension": [OURS]}), "Consent.extension[0].extension[0].url"),
    (None, consent(_status={"extension": [OURS]}), "Consent._status.extension[0].url"),
    (None, consent(contained=[consent(OURS, id="c")]), "Consent.contained[0].extension[0].url"),
])
def test_what_anybody_else_writes_is_found_wherever_it_stands(old: dict[str, Any] | None, new: dict[str, Any],
                                                              place: str) -> None:
    assert claimed(old, new) == place
