"""UserInfo: who signed in, to who holds a token with ``openid``.

Owns the claims of OpenID Connect's UserInfo endpoint, the same as the id_token's; refuses a token without ``openid``.
https://openid.net/specs/openid-connect-core-1_0.html#UserInfo
"""

from __future__ import annotations

from gateway.errors import Forbidden, Unauthenticated
from gateway.smart.issuer import Smart
from gateway.smart.issuing import identity
from gateway.smart.tokens import bearer


def userinfo(smart: Smart, authorization: str | None) -> dict[str, str]:
    """``sub`` and, where the token may know it, ``fhirUser``. Raises Unauthenticated or Forbidden."""
    secret = bearer(authorization)
    grant, _ = smart.tokens.lookup(smart.database.reader, secret, smart.now_ms())
    if grant.user is None:
        raise Unauthenticated("the access token is of no person", error="invalid_token", reason="no-user")
    if "openid" not in grant.scopes.others:
        raise Forbidden("the access token has no scope openid")
    return identity(smart, grant.user, grant.scopes)
