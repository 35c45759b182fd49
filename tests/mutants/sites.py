"""Find the checks that refuse something, and disable one at a time.

A check is a statement that ends in a refusal: ``raise`` of a rejection (or of what a local function returns as one),
a call of a local function that never returns, a call of a function whose name says that it checks. Disabled means: the
statement becomes ``pass``. Pure: text in, text out.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

REJECTIONS = frozenset(
    {
        "EvidenceRejected",
        "EnrollmentRejected",
        "ChallengeRejected",
        "TokenRejected",
        "ReleaseRefused",
        "ImaRejected",
    }
)
_CHECKS = ("check_", "_check_", "require_", "_require_")


@dataclass(frozen=True, slots=True)
class Site:
    """One statement that refuses."""

    path: str
    """Of the module, below the tree."""
    function: str
    line: int
    reason: str
    """As the statement names it: a member of a reason enum, or the function that is called."""
    _statement: ast.stmt

    @property
    def text(self) -> str:
        """The statement."""
        return ast.unparse(self._statement)

    def disabled(self, source: str) -> str:
        """The module without this check; every line keeps its number."""
        lines = source.splitlines(keepends=True)
        first, last = self._statement.lineno - 1, (self._statement.end_lineno or self._statement.lineno) - 1
        indent, rest = self._statement.col_offset, lines[last][self._statement.end_col_offset :]
        replaced = [lines[first][:indent] + "pass" + rest, *["\n"] * (last - first)]
        return "".join(lines[:first] + replaced + lines[last + 1 :])


def find_sites(path: str, source: str, *, also: frozenset[str] = frozenset()) -> list[Site]:
    """All checks of a module.

    Args:
        path: Where it is.
        source: Its text.
        also: Names of further exceptions that refuse in this module.
    """
    tree = ast.parse(source)
    rejections = REJECTIONS | also
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    makers = {function.name for function in functions if _returned(function) in rejections}
    never = {function.name for function in functions if _returned(function) == "NoReturn"}
    return [
        Site(path, function, statement.lineno, reason, statement)
        for function, statement in _statements(tree, "")
        if (reason := _reason(statement, rejections | makers, never)) is not None
    ]


def _returned(function: ast.FunctionDef) -> str:
    return "" if function.returns is None else ast.unparse(function.returns)


def _statements(node: ast.AST, function: str) -> Iterator[tuple[str, ast.stmt]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _statements(child, f"{function}.{child.name}".lstrip("."))
            continue
        if isinstance(child, ast.stmt):
            yield function, child
        yield from _statements(child, function)


def _reason(statement: ast.stmt, rejections: frozenset[str] | set[str], never: set[str]) -> str | None:
    if isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call):
        if _called(statement.exc) not in rejections:
            return None
        return _named_reason(statement.exc) or _called(statement.exc)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = _called(statement.value)
        if called in never:
            return _named_reason(statement.value) or called
        if called.startswith(_CHECKS):
            return called
    return None


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _named_reason(call: ast.Call) -> str | None:
    for node in ast.walk(call):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id.endswith("Reason"):
            return node.attr
    return None
