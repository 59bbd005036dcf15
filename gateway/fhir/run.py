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
    """``resource`` is %resource, ``root`` %rootResource; ``contained`` maps ids to types within the root.

    ``bundle`` is the Bundle around the root, where there is one. ``thorough``: also what a write is not refused for.
    """

    __slots__ = ("_context", "bundle", "contained", "errors", "issues", "model", "resource", "root", "thorough")

    def __init__(self, resource: dict[str, Any], model: TypeModel, *, thorough: bool = False) -> None:
        self.thorough = thorough
        self.bundle: dict[str, Any] | None = None
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

    def add(self, issues: list[Issue]) -> None:
        """Issues found elsewhere."""
        for issue in issues:
            self.errors += issue.severity == "error"
            if len(self.issues) < MAX_ISSUES:
                self.issues.append(issue)

    def enter(self, resource: dict[str, Any], *, own_root: bool) -> tuple[Any, ...]:
        """Make ``resource`` the %resource (and %rootResource); give what ``leave`` needs to undo it."""
        before = (self.resource, self.root, self.contained, self.bundle, self._context)
        if own_root:
            self.bundle = self.resource if self.resource.get("resourceType") == "Bundle" else None
            self.root = resource
            self.contained = {}
        self.resource = resource
        self._context = None
        return before

    def leave(self, before: tuple[Any, ...]) -> None:
        self.resource, self.root, self.contained, self.bundle, self._context = before

    def context(self, type_name: str) -> Context:
        """FHIRPath's context for a focus of ``type_name`` in the current resource."""
        context = self._context
        if context is None or context.type != type_name:
            context = self._context = Context(resource=self.resource, root=self.root, type=type_name,
                                              model=self.model)
        return context
