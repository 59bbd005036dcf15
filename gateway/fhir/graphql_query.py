"""A GraphQL document as what it asks for: fields, their arguments and conditions, with nothing left to look up.

Owns reading it with its variables, fragments and directives; refuses mutations, introspection, directives it does not
know, fragments within themselves, and what is longer, deeper or wider than the limits say.
https://hl7.org/fhir/R4/graphql.html, https://spec.graphql.org/October2021/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.errors import BadSearch, Malformed, TooCostly
from gateway.fhir.resource import DECIMAL

TOKENS_MAX: Final = 4_000
FIELDS_MAX: Final = 1_000
"""Most fields of a query, those of a fragment counted wherever it is spread."""
DEPTH_MAX: Final = 20
PLACE: Final = "http.query"


@dataclass(frozen=True, slots=True)
class Asked:
    """One field: ``key`` names it in the answer; each argument has one text or several, any of which will do."""

    name: str
    key: str
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    below: tuple[Asked | OnType, ...] = ()


@dataclass(frozen=True, slots=True)
class OnType:
    """A fragment: its fields count where the type is ``condition``; None: anywhere."""

    condition: str | None
    below: tuple[Asked | OnType, ...]


Selections = Sequence[Asked | OnType]


def refused(problem: str, code: str = "invalid") -> BadSearch:
    """The refusal of a query that cannot be run as asked."""
    return BadSearch(f"$graphql: {problem}", code=code, expression=PLACE)


def read_query(text: str, operation: str | None, variables: Mapping[str, Any]) -> tuple[Asked | OnType, ...]:
    """The selections of the operation named, or of the only one. Raises Malformed, BadSearch, TooCostly."""
    # Half a second that only who asks for it pays; this function is to be called in a thread.
    from graphql.error import GraphQLSyntaxError
    from graphql.language import parse

    try:
        document = parse(text, no_location=True, max_tokens=TOKENS_MAX)
    except GraphQLSyntaxError as error:
        place = "".join(f" (line {one.line}, column {one.column})" for one in (error.locations or ())[:1])
        raise Malformed(f"$graphql: the query is no GraphQL, or longer than {TOKENS_MAX} words{place}",
                        code="structure", expression=PLACE) from error
    except RecursionError as error:
        raise TooCostly(f"$graphql: nested deeper than {DEPTH_MAX}", code="too-costly", expression=PLACE) from error
    definitions: list[Any] = list(document.definitions)  # Any: a node is told by its kind
    fragments = {node.name.value: node for node in definitions if node.kind == "fragment_definition"}
    operations = [node for node in definitions if node.kind == "operation_definition"]
    named = [node for node in operations if operation is None or (node.name and node.name.value == operation)]
    if len(named) != 1:
        raise refused("operationName names one of its operations, where there are several")
    if named[0].operation.value != "query" or len(fragments) + len(operations) != len(definitions):
        raise refused("it reads, and takes queries and fragments", code="not-supported")
    return _Reader(fragments, _variables(named[0], variables)).read(named[0].selection_set, 1)


def _variables(operation: Any, given: Mapping[str, Any]) -> dict[str, tuple[str, ...] | None]:
    """Values of the variables declared: as given, else their default. Raises BadSearch."""
    found: dict[str, tuple[str, ...] | None] = {}
    for declared in operation.variable_definitions or ():
        name = declared.variable.name.value
        if name in given:
            found[name] = _given(given[name])
        elif declared.default_value is not None:
            found[name] = _literal(declared.default_value, {})
        else:
            found[name] = None
        if declared.type.kind == "non_null_type" and found[name] is None:
            raise refused(f"the variable {name[:64]!r} has no value", code="required")
    return found


def _given(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if type(value) is bool:
        return ("true",) if value else ("false",)
    if type(value) is list:
        return tuple(text for one in value for text in _given(one) or ())
    if type(value) is dict:
        raise refused("a variable is a value or a list of values", code="value")
    return (bytes(value).decode() if type(value) is DECIMAL else str(value),)


def _literal(node: Any, variables: Mapping[str, tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The texts of a value node; None of null and of what was not given."""
    kind = node.kind
    if kind == "variable":
        name = node.name.value
        if name not in variables:
            raise refused(f"the variable {name[:64]!r} is not declared")
        return variables[name]
    if kind == "null_value":
        return None
    if kind == "list_value":
        return tuple(text for one in node.values for text in _literal(one, variables) or ())
    if kind == "object_value":
        raise refused("an argument is a value or a list of values", code="value")
    if kind == "boolean_value":
        return ("true",) if node.value else ("false",)
    return (str(node.value),)


class _Reader:
    """Writes fragments out where they are spread, and leaves out what its directives do."""

    def __init__(self, fragments: Mapping[str, Any], variables: Mapping[str, tuple[str, ...] | None]) -> None:
        self._fragments = fragments
        self._variables = variables
        self._within: list[str] = []
        self._left = FIELDS_MAX

    def read(self, selection_set: Any, depth: int) -> tuple[Asked | OnType, ...]:
        if depth > DEPTH_MAX:
            raise TooCostly(f"$graphql: nested deeper than {DEPTH_MAX}", code="too-costly", expression=PLACE)
        return tuple(self._each(selection_set, depth))

    def _each(self, selection_set: Any, depth: int) -> Iterator[Asked | OnType]:
        for node in selection_set.selections:
            self._left -= 1
            if self._left < 0:
                raise TooCostly(f"$graphql: a query has {FIELDS_MAX} fields at most, those of its fragments counted "
                                "wherever they are spread", code="too-costly", expression=PLACE)
            if not self._wanted(node):
                continue
            if node.kind == "field":
                yield self._field(node, depth)
            elif node.kind == "inline_fragment":
                on = node.type_condition
                yield OnType(None if on is None else on.name.value, self.read(node.selection_set, depth + 1))
            else:
                yield self._spread(node.name.value, depth)

    def _wanted(self, node: Any) -> bool:
        """What ``@skip`` and ``@include`` say; others would change the answer, and are refused."""
        wanted = True
        for directive in node.directives or ():
            name = directive.name.value
            if name not in ("skip", "include"):
                raise refused(f"the directive @{name[:64]} is not known here", code="not-supported")
            values = [_literal(one.value, self._variables) for one in directive.arguments or ()
                      if one.name.value == "if"]
            if values not in ([("true",)], [("false",)]):
                raise refused(f"@{name} takes if: true or false", code="value")
            wanted = wanted and (values == [("true",)]) is (name == "include")
        return wanted

    def _field(self, node: Any, depth: int) -> Asked:
        name = node.name.value
        arguments: dict[str, tuple[str, ...]] = {}
        for argument in node.arguments or ():
            if argument.name.value in arguments:
                raise refused(f"the argument {argument.name.value[:64]!r} is given twice")
            value = _literal(argument.value, self._variables)
            if value is not None:
                arguments[argument.name.value] = value
        below = self.read(node.selection_set, depth + 1) if node.selection_set is not None else ()
        return Asked(name, node.alias.value if node.alias else name, arguments, below)

    def _spread(self, name: str, depth: int) -> OnType:
        fragment = self._fragments.get(name)
        if fragment is None:
            raise refused(f"there is no fragment {name[:64]!r}")
        if name in self._within:
            raise refused(f"the fragment {name[:64]!r} is within itself")
        self._within.append(name)
        below = self.read(fragment.selection_set, depth + 1)
        self._within.pop()
        return OnType(fragment.type_condition.name.value, below)


def merged(fields: Sequence[Asked]) -> Asked:
    """Fields of one name in the answer as one. Raises BadSearch where they ask for different things."""
    first = fields[0]
    for other in fields[1:]:
        if (other.name, other.arguments) != (first.name, first.arguments):
            raise refused(f"{first.key[:64]!r} is asked for in two ways: give one an alias")
    if len(fields) == 1:
        return first
    return Asked(first.name, first.key, first.arguments, tuple(one for each in fields for one in each.below))
