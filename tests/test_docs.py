"""The documents are true: settings, paths, metrics, error codes, links, commands and examples.

Examples run as a user would run them: each in a process of its own, against a router and a worker
in processes of their own.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import httpx
import pytest

from slime_trio import demo, simulate
from slime_trio.app import create_app
from slime_trio.config import BUILT_IN_CAPTURE, OPTIONS, Option, Settings
from slime_trio.observability.json_metrics import metrics_json
from slime_trio.observability.prometheus import metrics_text
from slime_trio.router import Router
from slime_trio.routes import CONTROL_PATHS
from slime_trio.worker import SHIPPED_CHECKPOINT, WorkerOptions, create_worker_app
from slime_trio.worker import add_arguments as add_worker_arguments
from tests.simulate.__main__ import make_parser as make_simulation_parser

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OPERATIONS: Final = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

_EXAMPLE_BASE: Final = "http://127.0.0.1:30000"
_BLOCK: Final = re.compile(
    r"^```(?P<kind>\w+)(?: (?P<mark>[\w.]+))?\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
_FOREIGN_FLAGS: Final = {"--group", "--check", "--seconds"}
"""Flags of pip, of ruff and of the fuzzing."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[re.Match[str]]:
    return list(_BLOCK.finditer(page.read_text(encoding="utf-8")))


def marked(mark: str) -> list[str]:
    """The code of every block with this mark."""
    return [block["code"] for page in PAGES for block in blocks(page) if block["mark"] == mark]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


every_page = pytest.mark.parametrize("page", PAGES, ids=named)


# -- settings ----------------------------------------------------------------------------


def flags_of(*parsers: argparse.ArgumentParser) -> set[str]:
    return {
        flag
        for parser in parsers
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }


def known_flags() -> set[str]:
    parsers = [argparse.ArgumentParser() for _ in range(3)]
    for add, parser in zip(
        (add_worker_arguments, demo.add_arguments, simulate.add_arguments), parsers, strict=True
    ):
        add(parser)
    parsers.append(make_simulation_parser())
    return flags_of(*parsers) | {flag for option in OPTIONS for flag in option.flags}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "performance.md"],  # whose flags are the benchmarks'
    ids=named,
)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))
    assert found - known_flags() - _FOREIGN_FLAGS == set()


@every_page
def test_every_variable_that_a_page_names_exists(page: Path) -> None:
    found = set(re.findall(r"SLIME_ROUTER_[A-Z_]+[A-Z]", page.read_text(encoding="utf-8")))
    assert found <= {option.variable for option in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_setting_has_its_row_with_flags_variable_and_default(option: Option) -> None:
    flags = ", ".join(f"`{flag}`" for flag in option.flags)
    row = next(line for line in OPERATIONS.splitlines() if line.startswith(f"| {flags} |"))
    _, _, variable, default, *_ = (cell.strip() for cell in row.split("|"))
    assert variable == f"`{option.variable}`"
    value = getattr(Settings(), option.name)
    if isinstance(value, bool):
        assert default == ("on" if value else "off")
    elif isinstance(value, float):
        assert float(default.strip("`")) == value
    elif value in (None, ()):
        assert "`" not in default
    else:
        assert default == f"`{value}`"


def test_every_option_of_the_embedded_worker_is_in_its_table() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_worker_arguments(parser)
    table = OPERATIONS.split("## The embedded worker")[1]
    assert [flag for flag in sorted(flags_of(parser)) if f"`{flag}`" not in table] == []


def test_the_documents_name_of_the_capture_is_given() -> None:
    assert f"`{BUILT_IN_CAPTURE}`" in OPERATIONS


# -- paths -------------------------------------------------------------------------------


def routes(app: object) -> set[tuple[str, str]]:
    """Method and path of every route; converters read ``{}``, the pass-through is left out."""
    rules = app.url_map.iter_rules()  # type: ignore[attr-defined]
    return {
        (method, re.sub(r"<[^>]*>", "{}", rule.rule))
        for rule in rules
        if rule.rule not in ("/", "/<path:path>")
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }


def own_routes() -> set[tuple[str, str]]:
    return routes(create_app(Settings(capture=False)))


def documented_paths(page: Path) -> set[tuple[str, str]]:
    """``GET /path`` in code spans, and the URLs of examples (any method)."""
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`(GET|POST|PUT|DELETE|PATCH) (/[^`\s?]*)[^`]*`", text)
    bare = re.findall(r"`(/[a-z][a-z0-9_/{}]*)`", text)
    urls = re.findall(re.escape(_EXAMPLE_BASE) + r"(/[\w/]+)", text)
    urls = [re.sub(r"/[A-Z_]+$", "/{}", url) for url in urls]
    found = {*spans, *(("", path) for path in bare + urls)}
    return {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in found}


@every_page
def test_every_path_that_a_page_names_is_served(page: Path) -> None:
    known = own_routes() | routes(create_worker_app(WorkerOptions()))
    paths = {path for _, path in known} | {f"/{path}" for path in CONTROL_PATHS} | {"/v1", "/v1/"}
    unknown = {
        (method, path)
        for method, path in documented_paths(page)
        if ((method, path) not in known if method else path not in paths)
    }
    assert unknown == set()


def test_every_route_is_documented() -> None:
    documented = {path for page in PAGES for _, path in documented_paths(page)}
    assert {path for _, path in own_routes()} - documented == set()


# -- metrics and error codes -------------------------------------------------------------


def test_every_metric_is_documented() -> None:
    router = Router(Settings(capture=False))
    text = metrics_text(router).decode()
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    keys = [f"{part}.{key}" for part, values in metrics_json(router).items() for key in values]
    assert len(names) > 10
    assert [name for name in names if f"`{name}" not in OPERATIONS] == []
    assert [key for key in keys if f"`{key}`" not in OPERATIONS] == []


def test_every_metric_that_the_table_names_exists() -> None:
    router = Router(Settings(capture=False))
    text = metrics_text(router).decode()
    rows = OPERATIONS.split("## Metrics")[1].split("## Logs")[0]
    for name in re.findall(r"`(slime_\w+)", rows):
        assert f"# TYPE {name} " in text
    shown = metrics_json(router)
    for part, key in re.findall(r"`(router|cache)\.(\w+)`", rows):
        assert key in shown[part]


@every_page
def test_every_error_code_in_a_table_is_raised_somewhere(page: Path) -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    rows = re.findall(r"^\| [45]\d\d \| ([^|]*) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    codes = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert [code for code in codes if f'"{code}"' not in sources] == []


def raised_codes() -> set[str]:
    """Every ``code`` that an error of the router is given, in a call or as a class's own."""
    codes = set()
    for path in (ROOT / "src").rglob("*.py"):
        if path.is_relative_to(ROOT / "src/slime_trio/worker"):
            continue  # the embedded worker's are SGLang's
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case (
                    ast.keyword(arg="code", value=ast.Constant(value=str(code)))
                    | ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code)))
                ):
                    codes.add(code)
                case _:
                    pass
    return codes


def test_every_error_code_is_documented() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    codes = raised_codes()
    assert len(codes) > 50
    assert sorted(code for code in codes if f"`{code}`" not in pages) == []


# -- links and commands ------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give to headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.is_file() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert broken == []


def test_continuous_integration_runs_the_test_command_of_the_documents() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = (
        block["code"].strip()
        for block in _BLOCK.finditer(readme)
        if block["kind"] == "sh" and "-m pytest" in block["code"]
    )
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in lines
    assert command in (ROOT / "docs" / "development.md").read_text(encoding="utf-8")


def test_every_module_and_file_that_the_documents_name_exists() -> None:
    for page in PAGES:
        for path in re.findall(
            r"`((?:src|tests|docs|tools|benchmarks|slime_core|slime_trio)/[\w/.]*)`",
            prose(page),
        ):
            base = ROOT / "src" if path.startswith("slime_") else ROOT
            assert (base / path).exists(), f"{named(page)}: {path}"


# -- examples ----------------------------------------------------------------------------


def quiet_environment() -> dict[str, str]:
    """The environment without settings and proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLIME_ROUTER_") and not name.lower().endswith("_proxy")
    }


@contextmanager
def running(*words: str, cwd: Path, announced: str) -> Iterator[str]:
    """A server of ours; its URL, which it prints behind ``announced``."""
    with subprocess.Popen(
        [sys.executable, "-m", "slime_trio", *words],
        cwd=cwd,
        env=quiet_environment() | {"PYTHONPATH": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield url_from(process.stdout, announced)
        finally:
            process.kill()


def url_from(lines: IO[str], announced: str) -> str:
    seen = []
    for line in lines:
        seen.append(line)
        if announced in line:
            return line.split(announced)[1].strip()
    raise AssertionError(f"no server: {''.join(seen)}")


@contextmanager
def running_router(cwd: Path, *words: str) -> Iterator[str]:
    with ExitStack() as stack:
        worker = stack.enter_context(
            running("worker", "--port", "0", "--seed", "1", cwd=cwd, announced="worker ready at ")
        )
        here = ("--host", "127.0.0.1", "--port", "0", "--hf-checkpoint", str(SHIPPED_CHECKPOINT))
        router = stack.enter_context(
            running(*here, "--worker-url", worker, *words, cwd=cwd, announced="listens on ")
        )
        transport = httpx.HTTPTransport(retries=3)
        with httpx.Client(base_url=router, transport=transport, trust_env=False) as client:
            ready = (client.get("/readiness").status_code == 200 for _ in range(2000))
            assert any(ready)
        yield router


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_router(tmp_path_factory.mktemp("served")) as router:
        yield router


@pytest.mark.parametrize("code", marked("runnable"), ids=itertools.count())
def test_every_runnable_example_runs(code: str, served: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code.replace(_EXAMPLE_BASE, served), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, f"{code}\n{ran.stdout}{ran.stderr}"


def test_the_middleware_example_works_as_told(tmp_path: Path) -> None:
    (code,) = marked("house_rules.py")
    (tmp_path / "house_rules.py").write_text(code, encoding="utf-8")
    paths = "house_rules.LimitPrompts,house_rules.CountTenants"
    assert f"--middleware {paths}" in OPERATIONS
    with (
        running_router(tmp_path, "--middleware", paths) as router,
        httpx.Client(base_url=router, trust_env=False, headers={"x-tenant": "blue"}) as client,
    ):
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}
        answer = client.post("/generate", json=body)
        assert answer.status_code == 200
        call = answer.headers["x-slime-call-id"]
        assert client.get(f"/trajectories/{call}").status_code == 200
        too_long = client.post("/generate", json=body | {"text": "a" * 40_000})
        assert too_long.status_code == 400
        assert "too long" in too_long.json()["error"]["message"]
        with client.stream("POST", "/generate", json=body | {"stream": True}) as stream:
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert client.get("/tenants").json()["blue"] == 3
