"""The core is pure: nothing in it can reach a clock, chance, the system or a log.

A linter bans imports; it does not see builtins, module-level state, or a missing ``__all__``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import slime_core

_ROOT: Final = Path(slime_core.__file__).parent
_MODULES: Final = sorted(_ROOT.rglob("*.py"))
_ALLOWED: Final = {
    *("__future__", "array", "bisect", "codecs", "collections", "dataclasses", "enum", "functools"),
    *(
        "contextlib",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "re",
        "string",
        "struct",
        "types",
        "typing",
    ),
    # Addresses as values: parsing and comparing them asks no network.
    "ipaddress",
    *("base64", "operator", "abc", "binascii", "unicodedata", "urllib.parse", "fractions"),
    *("msgspec", "slime_core"),
}
_BANNED_CALLS: Final = {
    *("print", "open", "id", "hash", "globals", "locals", "vars", "input", "eval", "exec"),
    *("compile", "__import__", "breakpoint"),
}
_MUTABLE: Final = (ast.List, ast.ListComp, ast.SetComp, ast.Set, ast.DictComp, ast.GeneratorExp)
_MUTABLE_CALLS: Final = {"list", "dict", "set", "bytearray", "defaultdict", "Counter", "deque"}
_MUTABLE_CALLS.add("array")


def _tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def _name(module: Path) -> str:
    return str(module.relative_to(_ROOT))


every_module = pytest.mark.parametrize("module", _MODULES, ids=_name)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "slime_core" if node.level else (node.module or "")


def forbidden_imports(tree: ast.AST) -> list[str]:
    """Imports that the core may not have."""
    return [
        name
        for name in _imports(tree)
        if name not in _ALLOWED and name.split(".")[0] not in _ALLOWED - {"urllib.parse"}
    ]


def impure_constructs(tree: ast.AST) -> list[str]:
    """Calls of banned builtins, and anything asynchronous."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"line {node.lineno}: asynchronous")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in _BANNED_CALLS:
                found.append(f"line {node.lineno}: {node.func.id}()")
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found.append(f"line {node.lineno}: global or nonlocal")
    return found


def mutable_values(tree: ast.Module) -> list[str]:
    """Module-level names bound to something that can change; ``Final`` tables may be dicts."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = [ast.unparse(target) for target in node.targets]
            if names == ["__all__"] or not _is_mutable(node.value, final=False):
                continue
            found.append(f"line {node.lineno}: {names}")
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            final = "Final" in ast.unparse(node.annotation)
            if _is_mutable(node.value, final=final):
                found.append(f"line {node.lineno}: {ast.unparse(node.target)}")
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) != "__all__":
            found.append(f"line {node.lineno}: {ast.unparse(node.target)}")
    return found


def _is_mutable(value: ast.expr, *, final: bool) -> bool:
    if isinstance(value, ast.Dict):
        return not final
    if isinstance(value, ast.DictComp):
        return not final
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in _MUTABLE_CALLS and not (final and value.func.id == "dict")
    return isinstance(value, _MUTABLE)


def _public(tree: ast.Module) -> set[str]:
    """Names that a module defines itself and does not mark as private."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and not _is_type_variable(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def _is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("TypeVar", "ParamSpec")


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            value: list[str] = ast.literal_eval(node.value)
            return value
    return None


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring; protocols' members apart."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            missing += [f"{node.name}.{name}" for name in _undocumented_members(node)]
    return missing


def _undocumented_members(node: ast.ClassDef) -> list[str]:
    return [
        member.name
        for member in node.body
        if isinstance(member, ast.FunctionDef)
        and not member.name.startswith("_")
        and not ast.get_docstring(member)
    ]


@every_module
def test_only_allowed_modules_are_imported(module: Path) -> None:
    assert forbidden_imports(_tree(module)) == []


@every_module
def test_nothing_reaches_outside_or_waits(module: Path) -> None:
    assert impure_constructs(_tree(module)) == []


@every_module
def test_no_module_holds_state(module: Path) -> None:
    assert mutable_values(_tree(module)) == []


@every_module
def test_the_exports_are_literal_unique_and_complete(module: Path) -> None:
    tree = _tree(module)
    exported = _exported(tree)
    assert exported is not None
    assert len(set(exported)) == len(exported)
    assert _public(tree) <= set(exported)


@every_module
def test_what_is_public_is_documented(module: Path) -> None:
    assert undocumented(_tree(module)) == []


@pytest.mark.parametrize(
    "source",
    ["import time", "from os import path", "import random as r", "from urllib import request"],
)
def test_a_forbidden_import_is_found(source: str) -> None:
    assert forbidden_imports(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["print(1)", "x = id(y)", "async def f(): pass", "def f():\n  global x\n  x = 1"]
)
def test_an_impure_construct_is_found(source: str) -> None:
    assert impure_constructs(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["x = []", "x: Final = [1]", "x = {}", "x: dict = {}", "x = set()"]
)
def test_a_mutable_value_is_found(source: str) -> None:
    assert mutable_values(ast.parse(source))


@pytest.mark.parametrize("source", ["x: Final = {1: 2}", "x = (1, 2)", "__all__ = ['x']"])
def test_a_constant_is_none(source: str) -> None:
    assert mutable_values(ast.parse(source)) == []


def test_a_missing_docstring_is_found() -> None:
    source = '"""A module."""\nclass A:\n    """A."""\n    def f(self): pass\ndef g(): pass\n'
    assert undocumented(ast.parse(source)) == ["A.f", "g"]
