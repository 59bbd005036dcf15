"""Invariants: HL7's FHIRPath constraints, the frequent ones as plain Python.

Owns the choice between a native test (keyed by HL7's own expression, so a change of the definitions falls back to
FHIRPath by itself) and the compiled FHIRPath. Refuses to leave any out silently: ``OMITTED`` names those not run.
https://hl7.org/fhir/R4/conformance-rules.html#constraints

Divergence: where an ordering cannot be decided (``2012`` against ``2012-05``, two units) per-1, rng-2 and mdd-1 hold,
ras-2 holds without a probability, and que-7 reads ``Boolean`` as FHIR's boolean; elsewhere an empty result does
not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import orjson

from gateway.errors import FHIRPathError
from gateway.fhir.definitions import Constraint
from gateway.fhir.fhirpath import TypeModel, compile_expression
from gateway.fhir.run import Run

Holds = Callable[[Any, Run], bool]

OMITTED: Mapping[str, str] = MappingProxyType({
    "dom-6": "a warning for every resource without narrative; a feed would get one per write",
    "dom-2": "validate.py, with the contained resource's place",
    "dom-3": "validate.py, with the contained resource's place",
    "dom-4": "validate.py, with the contained resource's place",
    "dom-5": "validate.py, with the contained resource's place",
    "txt-1": "xhtml.py, as the primitive check of xhtml",
    "txt-2": "xhtml.py, as the primitive check of xhtml",
})
"""Constraint key -> why it is not run as FHIRPath."""


def _has(value: dict[str, Any], name: str) -> bool:
    return name in value or "_" + name in value


def _choice(value: dict[str, Any], name: str) -> bool:
    underscored = "_" + name
    return any(key.startswith((name, underscored)) for key in value)


def _ext_1(value: Any, run: Run) -> bool:
    return ("extension" in value) != _choice(value, "value")


def _per_1(value: Any, run: Run) -> bool:
    start, end = value.get("start"), value.get("end")
    if start is None or end is None:
        return True
    return not _after(start, end)


def _after(earlier: str, later: str) -> bool:
    """Whether ``earlier`` is surely after ``later``, to the precision both have."""
    if len(earlier) > 10 and len(later) > 10:
        try:
            return _moment(earlier) > _moment(later)
        except (ValueError, OverflowError):
            return False
    shared = min(len(earlier), len(later), 10)
    return earlier[:shared] > later[:shared]


def _moment(text: str) -> datetime:
    # A leap second reads as the second after; datetime takes six digits of a fraction.
    leap = text[17:19] == "60"
    text = re.sub(r"(\.\d{6})\d+", r"\1", text)
    moment = datetime.fromisoformat(text[:17] + "59" + text[19:] if leap else text)
    return moment + timedelta(seconds=1) if leap else moment


def _ref_1(value: Any, run: Run) -> bool:
    text = value.get("reference")
    return type(text) is not str or text[:1] != "#" or text == "#" or text[1:] in run.contained


def _qty_3(value: Any, run: Run) -> bool:
    return not _has(value, "code") or _has(value, "system")


def _cpt_2(value: Any, run: Run) -> bool:
    return not _has(value, "value") or _has(value, "system")


def _att_1(value: Any, run: Run) -> bool:
    return not _has(value, "data") or _has(value, "contentType")


def _rng_2(value: Any, run: Run) -> bool:
    low, high = value.get("low"), value.get("high")
    if low is None or high is None:
        return True
    if (low.get("system"), low.get("code")) != (high.get("system"), high.get("code")):
        return True
    if low.get("code") is None and low.get("unit") != high.get("unit"):
        return True
    low, high = low.get("value"), high.get("value")
    return low is None or high is None or bool(_number(low) <= _number(high))


def _number(value: Any) -> Any:
    return value if type(value) is int else value.as_decimal()


def _mdd_1(value: Any, run: Run) -> bool:
    handed, prepared = value.get("whenHandedOver"), value.get("whenPrepared")
    return handed is None or prepared is None or not _after(prepared, handed)


def _ras_2(value: Any, run: Run) -> bool:
    probability = value.get("probabilityDecimal")
    return probability is None or bool(_number(probability) <= 100)


def _que_7(value: Any, run: Run) -> bool:
    return value.get("operator") != "exists" or _has(value, "answerBoolean")


def _obs_6(value: Any, run: Run) -> bool:
    return "dataAbsentReason" not in value or not _choice(value, "value")


def _obs_7(value: Any, run: Run) -> bool:
    components = value.get("component")
    if components is None or not _choice(value, "value"):
        return True
    own = run.resource.get("code", {}).get("coding", ())
    theirs = [coding for component in components for coding in component.get("code", {}).get("coding", ())]
    if len(theirs) * len(own) < 1000:
        return not any(coding in own for coding in theirs)
    return {_canonical(coding) for coding in own}.isdisjoint(_canonical(coding) for coding in theirs)


def _canonical(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str)


def _sdf_8(value: Any, run: Run) -> bool:
    elements = value.get("element", ())
    paths = [element.get("path", "") for element in elements]
    snapshot = run.resource.get("snapshot", {}).get("element", ())
    if not paths:
        return run.resource.get("kind") == "logical"
    if run.resource.get("kind") != "logical" and paths[0] != run.resource.get("type"):
        return False
    within = snapshot[0].get("path", "") + "."
    return all(path.startswith(within) for path in paths[1:])


def _sdf_8a(value: Any, run: Run) -> bool:
    paths = [element.get("path", "") for element in value.get("element", ())]
    if not paths:
        return run.resource.get("kind") == "logical"
    if run.resource.get("kind") != "logical" and not paths[0].startswith(run.resource.get("type", "\n")):
        return False
    within = paths[0].partition(".")[0] + "."
    return all(path.startswith(within) for path in paths[1:])


def _obs_3(value: Any, run: Run) -> bool:
    return "low" in value or "high" in value or _has(value, "text")


def _pat_1(value: Any, run: Run) -> bool:
    return "name" in value or "telecom" in value or "address" in value or "organization" in value


NATIVE: Mapping[str, Holds] = MappingProxyType({
    "extension.exists() != value.exists()": _ext_1,
    "start.hasValue().not() or end.hasValue().not() or (start <= end)": _per_1,
    "reference.startsWith('#').not() or (reference.substring(1).trace('url') in "
    "%rootResource.contained.id.trace('ids'))": _ref_1,
    "code.empty() or system.exists()": _qty_3,
    "value.empty() or system.exists()": _cpt_2,
    "data.empty() or contentType.exists()": _att_1,
    "low.empty() or high.empty() or (low <= high)": _rng_2,
    "whenHandedOver.empty() or whenPrepared.empty() or whenHandedOver >= whenPrepared": _mdd_1,
    "probability is decimal implies (probability as decimal) <= 100": _ras_2,
    "operator = 'exists' implies (answer is Boolean)": _que_7,
    "dataAbsentReason.empty() or value.empty()": _obs_6,
    "value.empty() or component.code.where(coding.intersect(%resource.code.coding).exists()).empty()": _obs_7,
    "(%resource.kind = 'logical' or element.first().path = %resource.type) and element.tail().all(path.startsWith("
    "%resource.snapshot.element.first().path&'.'))": _sdf_8,
    "(%resource.kind = 'logical' or element.first().path.startsWith(%resource.type)) and (element.tail().empty() or "
    "element.tail().all(path.startsWith(%resource.differential.element.first().path"
    ".replaceMatches('\\\\..*','')&'.')))": _sdf_8a,
    "low.exists() or high.exists() or text.exists()": _obs_3,
    "name.exists() or telecom.exists() or address.exists() or organization.exists()": _pat_1,
})
"""HL7's expression -> the same test in Python: invariants that run on nearly every write, that FHIRPath makes
quadratic (sdf-8), or that need a divergence."""

SIMPLE_QUANTITY = Constraint(key="sqty-1", severity="error", expression="comparator.empty()",
                             human="The comparator is not used on a SimpleQuantity")


def compile_constraint(constraint: Constraint, type_name: str, model: TypeModel, *, native: bool = True) -> Holds:
    """The test of one invariant on a focus of ``type_name``. Raises FHIRPathError when it does not compile."""
    if native and constraint.expression in NATIVE:
        return NATIVE[constraint.expression]
    expression = compile_expression(constraint.expression, model)

    def holds(value: Any, run: Run) -> bool:
        try:
            return expression.is_true(value, run.context(type_name))
        except FHIRPathError:
            return False
    return holds
