"""What the documents and comments of this repository name is in this repository: files, and the sections of ours."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.running import REPOSITORY

_FOLDERS = ("gateway", "tests", "mappings", "openapi", "contracts/src", "contracts/test")
_SUFFIXES = frozenset({".py", ".md", ".sol", ".toml", ".sql", ".js", ".html", ".css", ".sh"})
_URL = re.compile(r"https?://\S+")
_NAME = re.compile(r"(?<![\w./-])[\w./-]*\w\.md\b")
_SECTION = re.compile(r"((?:[\w./-]*/)?(?:FORMATS|README)\.md)`{0,2}, (?=[A-Z])")
FILES = sorted({file for folder in _FOLDERS for file in (REPOSITORY / folder).rglob("*")
                if file.suffix in _SUFFIXES and "node_modules" not in file.parts}
               | {*REPOSITORY.glob("*.md"), *REPOSITORY.glob("Makefile"), *(REPOSITORY / "contracts").glob("*.*")})


@cache
def said(file: Path) -> str:
    """What a file that names pages says to people: of Python its docstrings and comments, else all of it; no URLs."""
    text = file.read_text("utf-8")
    if ".md" not in text:
        return ""
    if file.suffix == ".py":
        text = "\n".join(_spoken(text))
    return _URL.sub("", text)


def _spoken(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def found(name: str, file: Path) -> Path | None:
    """The page that is meant: beside the file, in a folder above it, or from the root of the repository."""
    for folder in file.parents:
        if (folder / name).is_file():
            return folder / name
        if folder == REPOSITORY:
            return None
    return None


@cache
def sections(page: Path) -> tuple[str, ...]:
    return tuple(line.lstrip("# ") for line in page.read_text("utf-8").splitlines() if line.startswith("#"))


@pytest.mark.parametrize("folder", sorted({str(file.relative_to(REPOSITORY).parent) for file in FILES}))
def test_every_page_that_is_named_is_here(folder: str) -> None:
    lost = [f"{file.name}: {name}" for file in FILES if file.parent == REPOSITORY / folder
            for name in _NAME.findall(said(file)) if found(name, file) is None]
    assert not lost, "a clone has no such page: name one of ours and its section, or say it in the comment itself"


def test_every_section_that_is_named_is_in_its_page() -> None:
    lost, named = [], 0
    for file in FILES:
        text = " ".join(said(file).split())
        for match in _SECTION.finditer(text):
            page = found(match[1], file)
            if page is not None and page.parent == REPOSITORY / "gateway":
                named += 1
                if not text[match.end():].startswith(sections(page)):
                    lost.append(f"{file.relative_to(REPOSITORY)}: {match[1]}, {text[match.end():][:30]}")
    assert not lost
    assert named > 30


def test_links_between_pages_lead_somewhere() -> None:
    lost = [f"{file.relative_to(REPOSITORY)}: {target}" for file in FILES if file.suffix == ".md"
            for target in re.findall(r"\]\(([^)#:\s]+)[^):\s]*\)", file.read_text("utf-8"))
            if not (file.parent / target).exists()]
    assert not lost
