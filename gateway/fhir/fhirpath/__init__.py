"""FHIRPath N1 over plain resource dicts: compile once, evaluate many times.

Owns the language, its type tests and its two ways of running: ``evaluate`` keeps N1 to the letter,
``is_true`` answers whether an invariant holds and works on the bare dicts where it can. Refuses to fetch
anything: references, value sets and profiles are the Context's answers. http://hl7.org/fhirpath/N1/

Divergence: ``is_true`` reads startsWith, endsWith, contains and matches on an absent element as false, as
R4's own invariants were written (bdl-8, ref-1), and holds when such a test is all there is (adf-0).
"""

from __future__ import annotations

from decimal import Decimal

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.compiler import compile_tree
from gateway.fhir.fhirpath.evaluation import Env
from gateway.fhir.fhirpath.node import Context, Item, Json, Node, TypeModel, node_of
from gateway.fhir.fhirpath.parser import parse
from gateway.fhir.fhirpath.truth import compile_truth
from gateway.fhir.fhirpath.values import Quantity, Temporal

__all__ = [
    "Context", "Expression", "FHIRPathError", "Node", "Quantity", "Temporal", "TypeModel", "compile_expression",
]


class Expression:
    """A compiled expression; immutable and safe to share between threads."""

    __slots__ = ("_evaluator", "_truth", "text")

    def __init__(self, text: str, model: TypeModel | None = None) -> None:
        self.text = text
        try:
            tree = parse(text)
            self._evaluator = compile_tree(tree)
            self._truth = compile_truth(tree, model)
        except RecursionError as error:
            raise FHIRPathError("FHIRPath: the expression is too long a chain") from error

    def nodes(self, node: Json | Node, context: Context) -> list[Item]:
        """The result as Nodes (elements) and System values, with their types.

        ``node`` is an element as parsed (``context.type`` is its type) or a Node.
        Raises FHIRPathError where an operation is not allowed on its values.
        """
        focus = node if type(node) is Node else node_of(node, context.type)
        try:
            return self._evaluator(focus, Env(context, focus))
        except (RecursionError, ArithmeticError) as error:
            raise FHIRPathError(f"FHIRPath: {self.text!r} cannot be evaluated") from error

    def evaluate(self, node: Json | Node, context: Context) -> list[Json | Decimal | Temporal | Quantity]:
        """The result as plain values: elements as they stand in the resource, System values as Python's.

        An element that has extensions but no value is left out. Raises as ``nodes`` does.
        """
        return [
            item.value if type(item) is Node else item
            for item in self.nodes(node, context)
            if type(item) is not Node or item.value is not None
        ]

    def is_true(self, node: Json, context: Context) -> bool:
        """Whether an invariant with this expression holds on ``node``, a JSON value as parsed.

        An empty result does not hold. Raises FHIRPathError as ``nodes`` does.
        """
        return self._truth(node, context) is True

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def compile_expression(text: str, model: TypeModel | None = None) -> Expression:
    """Compile FHIRPath ``text``. Raises FHIRPathError where it is none.

    ``model`` makes choice elements exact for ``is_true``; without it they are known by their suffix.
    The same model belongs into the Context.
    """
    return Expression(text, model)
