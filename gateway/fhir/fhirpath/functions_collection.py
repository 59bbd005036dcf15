"""FHIRPath functions on collections: existence, filtering, projection, subsetting, combining, tree.

http://hl7.org/fhirpath/N1/#functions sections 5.1 to 5.4, 5.8, 5.9
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath import node as tree
from gateway.fhir.fhirpath.evaluation import Env, Evaluator, Function, argument, each, integer_argument
from gateway.fhir.fhirpath.node import Item, Node
from gateway.fhir.fhirpath.operators import as_text, boolean, distinct, item_equal, singleton, system


def _where(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    truths = each(items, args[0], env)
    return [item for item, truth in zip(items, truths, strict=True) if boolean(truth) is True]


def _exists(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [bool(_where(items, args, this, env) if args else items)]


def _all(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [all(boolean(truth) is True for truth in each(items, args[0], env))]


def _select(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [found for part in each(items, args[0], env) for found in part]


_MAX_REPEAT = 100_000


def _repeat(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    found: list[Item] = []
    layer = items
    while layer:
        fresh: list[Item] = []
        for item in _select(layer, args, this, env):
            if not any(item_equal(item, other) is True for other in found):
                found.append(item)
                fresh.append(item)
        if len(found) > _MAX_REPEAT:
            raise FHIRPathError("FHIRPath: repeat() finds no end")
        layer = fresh
    return found


def _flags(items: list[Item]) -> list[bool]:
    values = [system(item) for item in items]
    if not all(type(value) is bool for value in values):
        raise FHIRPathError("FHIRPath: booleans expected")
    return values


def _all_true(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [all(_flags(items))]


def _any_true(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [any(_flags(items))]


def _all_false(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [not any(_flags(items))]


def _any_false(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [not all(_flags(items))]


def _holds(items: Sequence[Item], item: Item) -> bool:
    return any(item_equal(one, item) is True for one in items)


def _subset_of(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    other = argument(args, 0, this, env)
    return [all(_holds(other, item) for item in items)]


def _superset_of(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [all(_holds(items, item) for item in argument(args, 0, this, env))]


def _intersect(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    other = argument(args, 0, this, env)
    return distinct([item for item in items if _holds(other, item)])


def _exclude(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    other = argument(args, 0, this, env)
    return [item for item in items if not _holds(other, item)]


def _union(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return distinct([*items, *argument(args, 0, this, env)])


def _combine(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [*items, *argument(args, 0, this, env)]


def _skip(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return items[max(0, integer_argument(args, 0, this, env) or 0) :]


def _take(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return items[: max(0, integer_argument(args, 0, this, env) or 0)]


def _single(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    singleton(items)
    return items


def _children(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [found for item in items if type(item) is Node for found in tree.children(item, env.model)]


def _descendants(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [found for item in items if type(item) is Node for found in tree.descendants(item, env.model)]


def _is_distinct(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [len(distinct(items)) == len(items)]


def _iif(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    if len(items) > 1:
        raise FHIRPathError("FHIRPath: iif() takes one item")
    focus = items[0] if items else this
    truth = args[0](focus, env)
    if len(truth) == 1 and type(system(truth[0])) is not bool:
        raise FHIRPathError("FHIRPath: iif() asks for a boolean")
    if boolean(truth) is True:
        return args[1](focus, env)
    return argument(args, 2, focus, env)


def _aggregate(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    outer, outer_index = env.total, env.index
    total = argument(args, 1, this, env)
    try:
        for at, item in enumerate(items):
            env.total, env.index = total, at
            total = args[0](item, env)
    finally:
        env.total, env.index = outer, outer_index
    return total


def _trace(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return items


def _not(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    truth = boolean(items)
    return [] if truth is None else [not truth]


def _join(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    between = argument(args, 0, this, env)
    texts = [text for item in items if (text := as_text(item)) is not None]
    return [((as_text(between[0]) or "") if between else "").join(texts)]


COLLECTION_FUNCTIONS: Mapping[str, tuple[int, int, Function]] = {
    "where": (1, 1, _where),
    "exists": (0, 1, _exists),
    "empty": (0, 0, lambda items, args, this, env: [not items]),
    "not": (0, 0, _not),
    "all": (1, 1, _all),
    "allTrue": (0, 0, _all_true),
    "anyTrue": (0, 0, _any_true),
    "allFalse": (0, 0, _all_false),
    "anyFalse": (0, 0, _any_false),
    "subsetOf": (1, 1, _subset_of),
    "supersetOf": (1, 1, _superset_of),
    "count": (0, 0, lambda items, args, this, env: [len(items)]),
    "distinct": (0, 0, lambda items, args, this, env: distinct(items)),
    "isDistinct": (0, 0, _is_distinct),
    "select": (1, 1, _select),
    "repeat": (1, 1, _repeat),
    "single": (0, 0, _single),
    "first": (0, 0, lambda items, args, this, env: items[:1]),
    "last": (0, 0, lambda items, args, this, env: items[-1:]),
    "tail": (0, 0, lambda items, args, this, env: items[1:]),
    "skip": (1, 1, _skip),
    "take": (1, 1, _take),
    "intersect": (1, 1, _intersect),
    "exclude": (1, 1, _exclude),
    "union": (1, 1, _union),
    "combine": (1, 2, _combine),
    "iif": (2, 3, _iif),
    "children": (0, 0, _children),
    "descendants": (0, 0, _descendants),
    "aggregate": (1, 2, _aggregate),
    "trace": (1, 2, _trace),
    "join": (0, 1, _join),
}
