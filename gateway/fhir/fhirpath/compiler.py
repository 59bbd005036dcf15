"""FHIRPath tree to Python closures.

Owns what each form of expression does with its operands; refuses unknown functions and wrong argument
counts when compiling, not when running. http://hl7.org/fhirpath/N1/
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath import node as tree
from gateway.fhir.fhirpath import operators
from gateway.fhir.fhirpath.evaluation import Env, Evaluator, Function
from gateway.fhir.fhirpath.functions_boundary import BOUNDARY_FUNCTIONS, sort
from gateway.fhir.fhirpath.functions_collection import COLLECTION_FUNCTIONS
from gateway.fhir.fhirpath.functions_fhir import FHIR_FUNCTIONS
from gateway.fhir.fhirpath.functions_text import TEXT_FUNCTIONS
from gateway.fhir.fhirpath.functions_value import VALUE_FUNCTIONS
from gateway.fhir.fhirpath.node import Item, Node
from gateway.fhir.fhirpath.parser import (
    Ast,
    Binary,
    Call,
    Indexer,
    Literal,
    LoopIndex,
    LoopTotal,
    Member,
    Nothing,
    Sign,
    This,
    TypeTest,
    Variable,
)
from gateway.fhir.fhirpath.values import Quantity

FUNCTIONS: Mapping[str, tuple[int, int, Function]] = {
    **COLLECTION_FUNCTIONS,
    **TEXT_FUNCTIONS,
    **VALUE_FUNCTIONS,
    **FHIR_FUNCTIONS,
    **BOUNDARY_FUNCTIONS,
}
URLS: Mapping[str, str] = {
    "ucum": "http://unitsofmeasure.org",
    "sct": "http://snomed.info/sct",
    "loinc": "http://loinc.org",
}


def compile_tree(ast: Ast) -> Evaluator:
    """The closure of a tree. FHIRPathError for a function that does not exist, or its argument count."""
    if isinstance(ast, Member):
        return _member(ast)
    if isinstance(ast, Call):
        return _call(ast)
    if isinstance(ast, Binary):
        return _binary(ast)
    if isinstance(ast, Literal):
        value = ast.value
        return lambda this, env: [value]
    if isinstance(ast, This):
        return lambda this, env: [this]
    if isinstance(ast, TypeTest):
        return _type_test(ast)
    if isinstance(ast, Indexer):
        return _indexer(ast)
    if isinstance(ast, Variable):
        return _variable(ast.name)
    if isinstance(ast, Sign):
        return _sign(ast)
    if isinstance(ast, LoopIndex):
        return lambda this, env: [env.index]
    if isinstance(ast, LoopTotal):
        return lambda this, env: list(env.total)
    if isinstance(ast, Nothing):
        return lambda this, env: []
    raise FHIRPathError(f"FHIRPath: {ast!r} has no meaning")


def _member(ast: Member) -> Evaluator:
    name = ast.name
    if ast.first:
        if name[0].isupper():
            return lambda this, env: _type_root(this, name, env)
        return lambda this, env: tree.child(this, name, env.model) if type(this) is Node else []
    left = compile_tree(ast.left)

    def step(this: Item, env: Env) -> list[Item]:
        items = left(this, env)
        if len(items) == 1:
            item = items[0]
            return tree.child(item, name, env.model) if type(item) is Node else []
        model = env.model
        return [found for item in items if type(item) is Node for found in tree.child(item, name, model)]

    return step


def _type_root(this: Item, name: str, env: Env) -> list[Item]:
    """``Patient.name``: the type's name at the head of a path is the focus itself, if it is one."""
    if type(this) is not Node:
        return []
    if this.type == name or tree.has_type(this, name, env.model):
        return [this]
    return []


def _call(ast: Call) -> Evaluator:
    if ast.name == "sort":
        return _sort(ast)
    known = FUNCTIONS.get(ast.name)
    if known is None:
        raise FHIRPathError(f"FHIRPath: no function called {ast.name}()")
    least, most, function = known
    if not least <= len(ast.args) <= most:
        raise FHIRPathError(f"FHIRPath: {ast.name}() takes {least} to {most} arguments, not {len(ast.args)}")
    left = compile_tree(ast.left)
    args = tuple(compile_tree(one) for one in ast.args)
    return lambda this, env: function(left(this, env), args, this, env)


def _sort(ast: Call) -> Evaluator:
    """A minus before a key of sort() is its direction, not arithmetic."""
    left, keys = compile_tree(ast.left), []
    for key in ast.args or (This(),):
        descending = isinstance(key, Sign) and key.operator == "-"
        keys.append((compile_tree(key.operand if isinstance(key, Sign) and descending else key), descending))
    return lambda this, env: sort(left(this, env), keys, env)


def _type_test(ast: TypeTest) -> Evaluator:
    operand = compile_tree(ast.operand)
    name = ast.type_name
    if ast.operator == "is":

        def test(this: Item, env: Env) -> list[Item]:
            item = operators.singleton(operand(this, env))
            return [] if item is None else [tree.has_type(item, name, env.model)]

        return test
    def filtered(this: Item, env: Env) -> list[Item]:
        return [item for item in operand(this, env) if tree.has_type(item, name, env.model)]

    return filtered


def _indexer(ast: Indexer) -> Evaluator:
    left, index = compile_tree(ast.left), compile_tree(ast.index)

    def pick(this: Item, env: Env) -> list[Item]:
        at = operators.singleton(index(this, env))
        at = None if at is None else operators.system(at)
        if type(at) is not int:
            if at is None:
                return []
            raise FHIRPathError("FHIRPath: an index is an integer")
        return left(this, env)[at : at + 1] if at >= 0 else []

    return pick


def _variable(name: str) -> Evaluator:
    if name == "resource":
        return lambda this, env: [env.resource]
    if name == "rootResource":
        return lambda this, env: [env.root]
    if name == "context":
        return lambda this, env: [env.focus]
    url = URLS.get(name)
    if name.startswith("vs-"):
        url = f"http://hl7.org/fhir/ValueSet/{name[3:]}"
    elif name.startswith("ext-"):
        url = f"http://hl7.org/fhir/StructureDefinition/{name[4:]}"
    if url is not None:
        return lambda this, env: [url]

    def look_up(this: Item, env: Env) -> list[Item]:
        if name not in env.context.variables:
            raise FHIRPathError(f"FHIRPath: %{name} is not known here")
        value = env.context.variables[name]
        return [] if value is None else [tree.node_of(value, "") if type(value) is dict else value]

    return look_up


def _sign(ast: Sign) -> Evaluator:
    operand, minus = compile_tree(ast.operand), ast.operator == "-"

    def signed(this: Item, env: Env) -> list[Item]:
        item = operators.singleton(operand(this, env))
        if item is None:
            return []
        value = operators.system(item)
        if type(value) is Quantity:
            return [Quantity(-value.value if minus else value.value, value.unit, value.calendar)]
        if type(value) not in (int, Decimal):
            raise FHIRPathError("FHIRPath: a sign stands before a number")
        return [-value if minus else value]

    return signed


def _truth(value: bool | None) -> list[Item]:
    return [] if value is None else [value]


def _binary(ast: Binary) -> Evaluator:
    left, right, operator = compile_tree(ast.left), compile_tree(ast.right), ast.operator
    if operator in ("and", "or", "implies"):
        return _lazy(operator, left, right)
    if operator == "xor":

        def xor(this: Item, env: Env) -> list[Item]:
            one, other = operators.boolean(left(this, env)), operators.boolean(right(this, env))
            return [] if one is None or other is None else [one != other]

        return xor
    if operator == "=":
        return lambda this, env: _truth(operators.equal(left(this, env), right(this, env)))
    if operator == "!=":

        def unequal(this: Item, env: Env) -> list[Item]:
            same = operators.equal(left(this, env), right(this, env))
            return [] if same is None else [not same]

        return unequal
    if operator in ("~", "!~"):
        wanted = operator == "~"
        return lambda this, env: [operators.equivalent(left(this, env), right(this, env)) == wanted]
    if operator in ("<", ">", "<=", ">="):
        return _order(operator, left, right)
    if operator == "in":
        return lambda this, env: _truth(operators.contains(right(this, env), left(this, env)))
    if operator == "contains":
        return lambda this, env: _truth(operators.contains(left(this, env), right(this, env)))
    if operator == "|":
        return lambda this, env: operators.distinct([*left(this, env), *right(this, env)])
    return lambda this, env: operators.arithmetic(operator, left(this, env), right(this, env))


def _lazy(operator: str, left: Evaluator, right: Evaluator) -> Evaluator:
    """The right side is not run where the left side decides."""
    decisive = operator == "or"

    def combine(this: Item, env: Env) -> list[Item]:
        one = operators.boolean(left(this, env))
        if operator == "implies" and one is not None:
            one = not one
        stop = True if operator == "implies" else decisive
        if one is stop:
            return [stop]
        other = operators.boolean(right(this, env))
        if other is stop:
            return [stop]
        return [] if one is None or other is None else [not stop]

    return combine


def _order(operator: str, left: Evaluator, right: Evaluator) -> Evaluator:
    wanted = {"<": (-1,), ">": (1,), "<=": (-1, 0), ">=": (0, 1)}[operator]

    def ordered(this: Item, env: Env) -> list[Item]:
        order = operators.compare(left(this, env), right(this, env))
        return [] if order is None else [order in wanted]

    return ordered
