"""How the files read: their size, their docstrings, and that nothing of one machine is committed."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.make_tree import with_tree
from kdcache.version import __version__
from tests.architecture.source_tree import ROOT, Module, modules

MAX_LINES = 400
MAX_MEDIAN_LINES = 250
MAX_FUNCTION_LINES = 60  # a screen; a long docstring may take a function a little over 50
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:work|root|farm|home/\w+|Users/\w+|tmp/bash_jobs)/")


def _committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout (an unpacked sdist): there is no list of committed files")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _python_files() -> list[Path]:
    return [path for path in _committed() if path.suffix == ".py"]


def test_no_file_is_over_the_limit() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _python_files()}
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in sizes.items() if lines > MAX_LINES]
    assert not long, f"over {MAX_LINES} lines:\n" + "\n".join(long)


def test_the_median_module_is_small() -> None:
    lines = [len(module.text.splitlines()) for module in modules()]
    assert statistics.median(lines) <= MAX_MEDIAN_LINES


def test_no_grab_bag_modules() -> None:
    bags = [module.name for module in modules() if module.name.rsplit(".", 1)[-1] in BANNED_NAMES]
    assert not bags, f"name a module after what it holds: {bags}"


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{module.at(node.lineno)} {node.name}: {size} lines"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (size := _body_lines(node)) > MAX_FUNCTION_LINES
    ]
    assert not long, f"over {MAX_FUNCTION_LINES} lines without the docstring:\n" + "\n".join(long)


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or node.lineno) - first.lineno + 1


def _public_definitions(module: Module) -> Iterator[tuple[str, ast.AST]]:
    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(module.tree.body, "")


def _is_overload_or_protocol_stub(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(item) in ("overload", "typing.overload") or ast.unparse(item).endswith(".setter")
        for item in node.decorator_list
    )


def test_public_names_have_docstrings() -> None:
    bare = []
    for module in modules():
        if not ast.get_docstring(module.tree) and module.tree.body:
            bare.append(f"{module.at(1)} the module itself")
        for name, node in _public_definitions(module):
            if _is_overload_or_protocol_stub(node):
                continue
            if not ast.get_docstring(node):  # type: ignore[arg-type]
                bare.append(f"{module.at(node.lineno)} {name}")  # type: ignore[attr-defined]
    assert not bare, "no docstring:\n" + "\n".join(bare)


def test_public_functions_take_no_kwargs() -> None:
    loose = [
        f"{module.at(node.lineno)} {name}"
        for module in modules()
        for name, node in _public_definitions(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.args.kwarg
        and name != "with_changes"  # a typed dataclasses.replace: its keywords are the manifest's own fields
        and not any("subcommand(" in ast.unparse(item) for item in node.decorator_list)  # click names its keywords
    ]
    assert not loose, "\n".join(loose)


def test_no_path_of_one_machine_is_committed() -> None:
    found = []
    for path in _committed():
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            match = MACHINE_PATH.search(line)
            if match and not _is_container_path(path, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group().decode()}")
    assert not found, "\n".join(found)


def _is_container_path(path: Path, line: bytes) -> bool:
    return path == Path(__file__).resolve() and b"MACHINE_PATH = " in line


def test_nothing_large_is_committed() -> None:
    large = [
        f"{path.relative_to(ROOT)}: {size / 1e6:.1f} MB" for path in _committed() if (size := path.stat().st_size) > 2e6
    ]
    assert not large, "\n".join(large)


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_tree_in_the_readme_is_current() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_tree(readme) == readme, "run: python docs/make_tree.py"
