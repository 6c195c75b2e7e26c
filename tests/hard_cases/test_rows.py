"""The table of hard cases is complete, and every test that it names exists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.hard_cases.rows import CASES, ELSEWHERE, UNANSWERED, row

HERE = Path(__file__).parent
TESTS = HERE.parent


def _tests_of(file: Path) -> Iterator[tuple[str, list[int]]]:
    """The tests of a file, and the cases that they are marked with."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_"):
            yield node.name, [number for one in node.decorator_list for number in _row(one)]


def _row(decorator: ast.expr) -> list[int]:
    if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == row.__name__:
        return [ast.literal_eval(decorator.args[0])]
    return []


@cache
def _shown_here() -> set[int]:
    files = HERE.glob("test_*.py")
    return {number for file in files for _, numbers in _tests_of(file) for number in numbers}


@pytest.mark.parametrize("number", CASES)
def test_every_case_is_shown(number: int) -> None:
    assert (number in _shown_here() or number in ELSEWHERE) != (number in UNANSWERED)


NAMED = [
    *(name for names in ELSEWHERE.values() for name in names),
    *dict(UNANSWERED.values()).values(),
]


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_table_names_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert test in dict(_tests_of(TESTS / file))


def test_every_test_here_shows_a_case() -> None:
    for file in HERE.glob("test_*.py"):
        if file != Path(__file__):
            unmarked = [name for name, numbers in _tests_of(file) if not numbers]
            assert not unmarked, file.name


def test_only_cases_of_the_table_can_be_marked() -> None:
    with pytest.raises(ValueError, match="no case 45"):
        row(45)
