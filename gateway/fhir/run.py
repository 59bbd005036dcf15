"""The state of one validation: what is being checked, inside what, and the issues found so far.

Owns nothing else; refuses to outlive the call it was made for.
"""

from __future__ import annotations

from typing import Any, Literal

from gateway.errors import Issue
from gateway.fhir.fhirpath import Context, TypeModel

MAX_ISSUES = 200
"""Issues kept of one resource: a hostile body may break every element it has."""


class Run:
    """``resource`` is %resource, ``root`` %rootResource; ``contained`` maps ids to types within the root."""

    __slots__ = ("_context", "contained", "errors", "issues", "model", "resource", "root")

    def __init__(self, resource: dict[str, Any], model: TypeModel) -> None:
        self.issues: list[Issue] = []
        self.errors = 0
        self.model = model
        self.resource = resource
        self.root = resource
        self.contained: dict[str, str] = {}
        self._context: Context | None = None

    def error(self, code: str, diagnostics: str, path: str) -> None:
        self.errors += 1
        if len(self.issues) < MAX_ISSUES:
            self.issues.append(Issue("error", code, diagnostics, path))

    def report(self, severity: Literal["error", "warning"], code: str, diagnostics: str, path: str) -> None:
        if severity == "error":
            self.error(code, diagnostics, path)
        elif len(self.issues) < MAX_ISSUES:
            self.issues.append(Issue(severity, code, diagnostics, path))

    def enter(self, resource: dict[str, Any], *, own_root: bool) -> tuple[Any, ...]:
        """Make ``resource`` the %resource (and %rootResource); give what ``leave`` needs to undo it."""
        before = (self.resource, self.root, self.contained, self._context)
        self.resource = resource
        if own_root:
            self.root = resource
            self.contained = {}
        self._context = None
        return before

    def leave(self, before: tuple[Any, ...]) -> None:
        self.resource, self.root, self.contained, self._context = before

    def context(self, type_name: str) -> Context:
        """FHIRPath's context for a focus of ``type_name`` in the current resource."""
        context = self._context
        if context is None or context.type != type_name:
            context = self._context = Context(resource=self.resource, root=self.root, type=type_name,
                                              model=self.model)
        return context
