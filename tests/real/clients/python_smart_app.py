"""A confidential SMART app on fhirclient: ``python_smart_app.py BASE ID SECRET REDIRECT SCOPE``.

Prints ``{"visit": URL}`` and reads where its person came back to; last prints ``{"seen": …}``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fhirclient import client as smart
from fhirclient.models.condition import Condition
from fhirclient.models.observation import Observation
from fhirclient.server import FHIRPermissionDeniedException


def answered(question: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(question), flush=True)
    found: dict[str, Any] = json.loads(sys.stdin.readline())
    return found


def main(base: str, app_id: str, secret: str, redirect: str, scope: str) -> dict[str, Any]:
    """What the app saw: as launched, with its token renewed, and started anew from the state it kept."""
    kept: dict[str, Any] = {}
    app = smart.FHIRClient(settings={"app_id": app_id, "app_secret": secret, "api_base": base,
                                     "redirect_uri": redirect, "scope": scope}, save_func=kept.update)
    app.prepare()
    app.handle_callback(answered({"visit": app.authorize_url})["url"])
    auth = app.server.auth
    first = auth.access_token, auth.refresh_token
    found = Observation.where({}).perform_resources(app.server)
    try:
        Condition.where({}).perform_resources(app.server)
        conditions = 200
    except FHIRPermissionDeniedException:
        conditions = 403
    name, granted = app.patient.name[0].family, app.launch_context["scope"]
    renewed = app.reauthorize()
    again = smart.FHIRClient(state=json.loads(json.dumps(kept)))
    again.prepare()
    return {"patient": again.patient_id, "family": name, "again": again.patient.name[0].family, "scope": granted,
            "observations": sorted(one.id for one in found), "conditions": conditions, "renewed": renewed,
            "rotated": None not in first and first[0] != auth.access_token and first[1] != auth.refresh_token}


if __name__ == "__main__":
    print(json.dumps({"seen": main(*sys.argv[1:])}), flush=True)
