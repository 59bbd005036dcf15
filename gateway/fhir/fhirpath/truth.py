"""Invariants as quick three-valued tests on bare dicts.

Owns the compilation of the boolean forms R4's invariants are made of (existence, comparison with a
literal, membership, connectives) to the closures of ``rawtests`` and ``logic``, which make no Node; whatever else
occurs in an expression is evaluated by the general closures. Refuses to differ from them, save for tests of absent
text (``__init__``).
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.fhir.fhirpath import logic, operators, rawtests
from gateway.fhir.fhirpath.compiler import URLS, compile_tree
from gateway.fhir.fhirpath.evaluation import Env
from gateway.fhir.fhirpath.logic import Truth
from gateway.fhir.fhirpath.node import Context, Json, Node, TypeModel, node_of
from gateway.fhir.fhirpath.parser import Ast, Binary, Call, Literal, Member, This, TypeTest, Variable
from gateway.fhir.fhirpath.rawpath import RawValues, child_count, raw_values, steps_of

Count = Callable[[Json, Context], int]

_BOOLEAN_CALLS = frozenset({"exists", "empty", "not", "all", "hasValue", "isDistinct"}) | rawtests.ON_TEXT
_CONNECTIVES = frozenset({"and", "or", "xor", "implies"})
_COMPARISONS = frozenset({"=", "!=", "<", ">", "<=", ">=", "in", "contains"})
_NOTHING_FROM_NOTHING = frozenset({"where", "select", "trace", "first", "last", "tail", "skip", "take", "resolve"})


def compile_truth(ast: Ast, model: TypeModel | None) -> Truth:
    """The test of an invariant: True, False, or None where N1 has the empty collection."""
    if isinstance(ast, Call) and ast.name in rawtests.ON_TEXT:
        values = raw_values(ast.left, model, nested=False)
        test = _Compiler(model, nested=False).pure(ast)
        if values is not None and test is not None:
            alone, found = test, values
            return lambda value, context: alone(value, context) if found(value, context) else True
    return _Compiler(model, nested=False).truth(ast)


def _literal(ast: Ast) -> str | bool | int | None:
    if isinstance(ast, Literal) and type(ast.value) in (str, bool, int):
        return ast.value  # type: ignore[return-value]  # the kinds were just named
    if isinstance(ast, Variable):
        return URLS.get(ast.name)
    return None


def _literals(ast: Ast) -> frozenset[str] | None:
    """The texts of ``('a' | 'b' | ...)``."""
    if isinstance(ast, Literal) and type(ast.value) is str:
        return frozenset({ast.value})
    if isinstance(ast, Binary) and ast.operator == "|":
        left, right = _literals(ast.left), _literals(ast.right)
        return None if left is None or right is None else left | right
    return None


def _is_boolean(ast: Ast) -> bool:
    if isinstance(ast, Call):
        return ast.name in _BOOLEAN_CALLS
    return isinstance(ast, Binary) and (ast.operator in _CONNECTIVES or ast.operator in _COMPARISONS)


class _Compiler:
    def __init__(self, model: TypeModel | None, *, nested: bool) -> None:
        self.model = model
        self.nested = nested

    def truth(self, ast: Ast) -> Truth:
        """Of any expression: quick where it can be, general where it cannot."""
        found = self.pure(ast)
        if found is not None:
            return found
        if isinstance(ast, Binary) and ast.operator in _CONNECTIVES:
            return logic.connect(ast.operator, self.truth(ast.left), self.truth(ast.right))
        if isinstance(ast, Call) and ast.name == "not" and _is_boolean(ast.left):
            return logic.negate(self.truth(ast.left))
        return self.guarded(ast) or _general(ast)

    def guarded(self, ast: Ast) -> Truth | None:
        """``path.where(...)...empty()``: decided at once where the path is empty, else the general way."""
        if not isinstance(ast, Call) or ast.name not in ("exists", "empty") or ast.args:
            return None
        inner = ast.left
        while isinstance(inner, Call) and inner.name in _NOTHING_FROM_NOTHING:
            inner = inner.left
        values = raw_values(inner, self.model, nested=self.nested)
        if inner is ast.left or values is None or isinstance(inner, This):
            return None
        general, found, if_none = _general(ast), values, ast.name == "empty"
        return lambda value, context: general(value, context) if found(value, context) else if_none

    def pure(self, ast: Ast) -> Truth | None:
        """A closure that looks at bare values only, or None."""
        if isinstance(ast, Binary):
            return self.binary(ast)
        if isinstance(ast, Call):
            return self.call(ast)
        if isinstance(ast, Member):
            return self.bare(ast)
        return None

    def values(self, ast: Ast) -> RawValues | None:
        return raw_values(ast, self.model, nested=self.nested)

    def bare(self, ast: Member) -> Truth | None:
        values = self.values(ast)
        if values is None:
            return None
        found = values

        def test(value: Json, context: Context) -> bool | None:
            return operators.boolean([Node(one, "") for one in found(value, context)])

        return test

    def binary(self, ast: Binary) -> Truth | None:
        operator = ast.operator
        if operator in _CONNECTIVES:
            left, right = self.pure(ast.left), self.pure(ast.right)
            return None if left is None or right is None else logic.connect(operator, left, right)
        if operator in ("=", "!="):
            return self.equality(ast)
        if operator == "in":
            values, texts = self.values(ast.left), _literals(ast.right)
            return None if values is None or texts is None else rawtests.membership(values, texts)
        if operator in ("<", ">", "<=", ">="):
            return self.order(ast)
        return None

    def equality(self, ast: Binary) -> Truth | None:
        wanted = ast.operator == "="
        literal = _literal(ast.right)
        if literal is not None:
            values = self.values(ast.left)
            if values is not None:
                return rawtests.equality(values, literal, wanted)
        elif _is_boolean(ast.left) and _is_boolean(ast.right):
            left, right = self.pure(ast.left), self.pure(ast.right)
            if left is not None and right is not None:
                return logic.agree(left, right, wanted)
        return self.counts(ast)

    def order(self, ast: Binary) -> Truth | None:
        counted = self.counts(ast)
        if counted is not None:
            return counted
        left, right = self.values(ast.left), self.values(ast.right)
        if left is None:
            return None
        if right is not None and steps_of(ast.left) != ("this", ()):
            return rawtests.ordered(ast.operator, left, right)
        literal = _literal(ast.right)
        return rawtests.above(ast.operator, left, literal) if type(literal) is int else None

    def counts(self, ast: Binary) -> Truth | None:
        left, right = self.count(ast.left), self.count(ast.right)
        if left is None or right is None or not (_counts(ast.left) or _counts(ast.right)):
            return None
        one, other, test = left, right, rawtests.INTEGERS[ast.operator]
        return lambda value, context: test(one(value, context), other(value, context))

    def count(self, ast: Ast) -> Count | None:
        if isinstance(ast, Literal) and type(ast.value) is int:
            number = ast.value
            return lambda value, context: number
        if isinstance(ast, Binary) and ast.operator == "+":
            left, right = self.count(ast.left), self.count(ast.right)
            if left is None or right is None:
                return None
            one, other = left, right
            return lambda value, context: one(value, context) + other(value, context)
        if isinstance(ast, Call) and ast.name == "count":
            if isinstance(ast.left, Call) and ast.left.name == "children" and isinstance(ast.left.left, This):
                return None if self.nested else lambda value, context: child_count(value)
            values = self.values(ast.left)
            if values is not None:
                found = values
                return lambda value, context: len(found(value, context))
        return None

    def call(self, ast: Call) -> Truth | None:
        if ast.name == "not":
            inner = self.pure(ast.left) if _is_boolean(ast.left) else None
            return None if inner is None else logic.negate(inner)
        if ast.name in ("exists", "empty"):
            return self.existence(ast)
        if ast.name == "all":
            values, test = self.values(ast.left), _Compiler(self.model, nested=True).pure(ast.args[0])
            return None if values is None or test is None else rawtests.all_of(values, test)
        values = self.values(ast.left)
        if values is None:
            return None
        if ast.name == "hasValue":
            return rawtests.held(values)
        argument = _literal(ast.args[0]) if ast.args else None
        if ast.name in rawtests.ON_TEXT and type(argument) is str and len(ast.args) == 1:
            return rawtests.text_test(ast.name, values, argument)
        return None

    def existence(self, ast: Call) -> Truth | None:
        wanted = ast.name == "exists"
        left, criteria = ast.left, ast.args[0] if ast.args else None
        if criteria is None and isinstance(left, Call) and left.name == "where":
            criteria = left.args[0]
            left = left.left
        values = self.values(left)
        if values is None:
            if isinstance(left, TypeTest):
                return None
            union = self.union(left) if criteria is None else None
            return None if union is None else (union if wanted else logic.negate(union))
        if criteria is not None:
            test = _Compiler(self.model, nested=True).pure(criteria)
            return None if test is None else rawtests.any_of(values, test, wanted)
        steps = steps_of(left)
        if steps is not None and steps[0] == "this" and len(steps[1]) == 1:
            name = steps[1][0]
            choice = self.model is None or bool(self.model.choice_keys(name))
            return rawtests.presence(name, choice, wanted)
        if steps == ("this", ()):
            return lambda value, context: wanted
        found = values
        return lambda value, context: bool(found(value, context)) is wanted

    def union(self, ast: Ast) -> Truth | None:
        """``(a | b).exists()``."""
        if not isinstance(ast, Binary) or ast.operator != "|":
            return None
        sides: list[Truth] = []
        for side in (ast.left, ast.right):
            test = self.union(side) or (self.existence(Call(side, "exists")) if self.values(side) else None)
            if test is None:
                return None
            sides.append(test)
        return logic.connect("or", *sides)


def _counts(ast: Ast) -> bool:
    return isinstance(ast, Call) or (isinstance(ast, Binary) and (_counts(ast.left) or _counts(ast.right)))


def _general(ast: Ast) -> Truth:
    evaluator = compile_tree(ast)

    def test(value: Json, context: Context) -> bool | None:
        focus = node_of(value, context.type)
        return operators.boolean(evaluator(focus, Env(context, focus)))

    return test
