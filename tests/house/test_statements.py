"""No statement runs inside the loop over another: left early, the outer one holds the connection at its moment.

SQLite then shows that connection no later commit, and a revocation is one (invariant 6). Rows are read whole first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "gateway"
_HANDS_OVER = frozenset({"connection", "tx", "reader", "transaction"})


def is_statement(node: ast.AST) -> bool:
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("execute", "executemany"))


def bodies(tree: ast.AST) -> Iterator[tuple[int, list[ast.AST]]]:
    """What is done for each row, of loops that run over a statement's rows as they come."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and is_statement(node.iter):
            yield node.lineno, list(node.body)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp) and any(
                is_statement(one.iter) for one in node.generators):
            yield node.lineno, [node.elt, *(test for one in node.generators for test in one.ifs)]
        elif isinstance(node, ast.DictComp) and any(is_statement(one.iter) for one in node.generators):
            yield node.lineno, [node.key, node.value, *(test for one in node.generators for test in one.ifs)]


def asks_again(part: ast.AST) -> bool:
    return any(is_statement(node) or isinstance(node, ast.Yield)
               or (isinstance(node, ast.Name) and node.id in _HANDS_OVER)
               or (isinstance(node, ast.Attribute) and node.attr.lstrip("_") in _HANDS_OVER)
               for node in ast.walk(part))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_statement_runs_inside_the_loop_over_another(path: Path) -> None:
    found = [line for line, body in bodies(ast.parse(path.read_text())) if any(map(asks_again, body))]
    assert not found, f"{path.name}: the rows at line {found} are not read whole before something else is asked"
