"""What a compiled step is handed while an expression runs.

Owns the shape of closures and of the running environment; refuses to know any function or operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.node import Context, Item, Node, node_of
from gateway.fhir.fhirpath.operators import as_text, singleton, system


class Env:
    """One evaluation: its context, the focus it began with, and the loop variables of the moment."""

    __slots__ = ("context", "focus", "index", "model", "resource", "root", "total")

    def __init__(self, context: Context, focus: Node) -> None:
        self.context = context
        self.model = context.model
        self.focus = focus
        self.index: int = 0
        self.total: list[Item] = []
        self.resource = focus if context.resource is None else node_of(context.resource, "")
        self.root = self.resource if context.root is None else node_of(context.root, "")


Evaluator = Callable[[Item, Env], list[Item]]
"""A compiled expression: ($this, environment) -> collection."""

Function = Callable[[list[Item], Sequence[Evaluator], Item, Env], list[Item]]
"""(input, arguments not yet evaluated, outer $this, environment) -> collection."""


def each(items: Sequence[Item], step: Evaluator, env: Env) -> list[list[Item]]:
    """``step`` on every item, with $this and $index set."""
    outer = env.index
    results = []
    try:
        for at, item in enumerate(items):
            env.index = at
            results.append(step(item, env))
    finally:
        env.index = outer
    return results


def argument(args: Sequence[Evaluator], at: int, this: Item, env: Env) -> list[Item]:
    """The collection of an argument, empty where it is not given."""
    return args[at](this, env) if at < len(args) else []


def text_argument(args: Sequence[Evaluator], at: int, this: Item, env: Env) -> str | None:
    """A singleton text argument, None where it is empty. FHIRPathError on anything but text."""
    item = singleton(argument(args, at, this, env))
    if item is None:
        return None
    value = system(item)
    if type(value) is not str:
        value = as_text(item)
    if type(value) is not str:
        raise FHIRPathError("FHIRPath: a text expected")
    return value


def integer_argument(args: Sequence[Evaluator], at: int, this: Item, env: Env) -> int | None:
    """A singleton integer argument, None where it is empty. FHIRPathError on anything else."""
    item = singleton(argument(args, at, this, env))
    if item is None:
        return None
    value = system(item)
    if type(value) is int:
        return value
    if type(value) is Decimal and value == int(value):
        return int(value)
    raise FHIRPathError("FHIRPath: an integer expected")
