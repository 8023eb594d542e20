"""The package's modules, parsed once, with what they import; what the architecture tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, whether inside a function, whether for type checkers only."""

    name: str
    line: int
    in_function: bool
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path
    text: str
    tree: ast.Module
    imports: tuple[Import, ...]

    def at(self, line: int) -> str:
        """`path:line`, for messages."""
        return f"{self.path.relative_to(ROOT)}:{line}"


def _children(node: ast.AST, in_function: bool, typing_only: bool) -> Iterator[tuple[ast.stmt, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typed = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function, typing_only
        yield from _children(child, inside, typed)


def _imports(name: str, is_package: bool, tree: ast.Module, known: frozenset[str]) -> Iterator[Import]:
    for node, in_function, typing_only in _children(tree, False, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join(parts[: len(parts) - node.level + 1] + ([base] if base else []))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in known else base, node.lineno, in_function, typing_only)


def _module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules(package: str = "kdcache") -> tuple[Module, ...]:
    """Every module of a top-level package of this repository, in order of name."""
    paths = sorted((ROOT / package).rglob("*.py"))
    known = frozenset(_module_name(path) for path in paths)
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        name = _module_name(path)
        imports = tuple(_imports(name, path.name == "__init__.py", tree, known))
        found.append(Module(name, path, text, tree, imports))
    return tuple(found)


def top_name(dotted: str) -> str:
    """The part of a kdcache module's name that the layer table speaks of: `kdcache.store.reader` -> `store`."""
    return dotted.split(".")[1] if "." in dotted else ""
