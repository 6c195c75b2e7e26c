"""``GET /openapi.json``: the router's own document, built from one table of operations.

The table says what is there for clients; that it says everything, and nothing that is not there, is
a test's to see (``tests/server/test_openapi.py``). Control paths are taken from the control
plane's own table. What is passed through to workers is not the router's and not in here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from quart import Response
from quart_trio import QuartTrio

from slime_trio.control.paths import PATHS
from slime_trio.openapi_schemas import SCHEMAS, ref
from slime_trio.responses import json_response

__all__ = ["OPERATIONS", "Operation", "add_openapi", "document"]

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_PLAIN: Final = "text/plain"
_SAFETENSORS: Final = "application/safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. ``body`` and ``answer`` name schemas; ``status`` is success's.

    ``kinds`` are the answer's content types, ``query`` names of parameters with their schema,
    ``captures``: it is there only where calls are captured.
    """

    method: str
    path: str
    tag: str
    summary: str
    body: str | None = None
    needs_body: bool = True
    answer: str | None = "Object"
    status: int = 200
    kinds: tuple[str, ...] = (_JSON,)
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    captures: bool = False

    @property
    def id(self) -> str:
        """Its name, unique in the document."""
        words = re.sub(r"[^a-z0-9]+", "_", self.path.lower()).strip("_") or "root"
        return f"{self.method.lower()}_{words}"


def _session_twin(row: Operation) -> Operation:
    """The same within a session."""
    return Operation(
        method=row.method,
        path=f"/sessions/{{session}}{row.path}",
        tag="sessions",
        summary=f"{row.summary}, in a session",
        body=row.body,
        answer=row.answer,
        kinds=row.kinds,
        captures=True,
    )


_WHOLE: Final = {"type": "integer", "minimum": 0, "maximum": 10**17}
_FORMAT: Final = {"type": "string", "enum": ["json", "prometheus"]}
_GENERATING: Final = (
    Operation(method="POST", path="/generate", tag="generation", summary="Generate, SGLang's way",
              body="GenerateRequest", kinds=(_JSON, _EVENTS)),
    Operation(method="POST", path="/v1/chat/completions", tag="generation",
              summary="Chat, OpenAI's way", body="ChatRequest", kinds=(_JSON, _EVENTS),
              captures=True),
    Operation(method="POST", path="/v1/completions", tag="generation",
              summary="Complete, OpenAI's way", body="CompletionRequest", kinds=(_JSON, _EVENTS),
              captures=True),
    Operation(method="GET", path="/v1/models", tag="generation", summary="List the model",
              captures=True),
)  # fmt: skip
_RETRIEVING: Final = (
    Operation(method="POST", path="/retrieve_from_text", tag="retrieval",
              summary="The trajectory of a text", body="RetrieveText", answer="Trajectory"),
    Operation(method="POST", path="/retrieve_from_messages_template", tag="retrieval",
              summary="The trajectory of a conversation", body="RetrieveMessages",
              answer="Trajectory"),
)  # fmt: skip
_OWN: Final = (
    *_GENERATING,
    Operation(method="PUT", path="/generate", tag="generation", summary="The same as POST",
              body="GenerateRequest", kinds=(_JSON, _EVENTS)),
    Operation(method="GET", path="/v1/models/{name}", tag="generation", summary="Show the model",
              captures=True),
    *_RETRIEVING,
    Operation(method="GET", path="/trajectories/{name}", tag="retrieval",
              summary="The trajectory that ends in a call"),
    Operation(method="POST", path="/sessions", tag="sessions", summary="Open a session",
              body="NewSession", needs_body=False, answer="SessionKey"),
    Operation(method="GET", path="/sessions", tag="sessions", summary="List the sessions",
              answer="Sessions", query=(("limit", _WHOLE), ("after", _WHOLE))),
    *(_session_twin(row) for row in (*_GENERATING, *_RETRIEVING)),
    Operation(method="GET", path="/sessions/{session}", tag="sessions", summary="Show its calls"),
    Operation(method="DELETE", path="/sessions/{session}", tag="sessions", summary="Delete it",
              answer=None, status=204),
    Operation(method="POST", path="/sessions/{session}/seal", tag="sessions",
              summary="Let no more calls into it"),
    Operation(method="POST", path="/sessions/{session}/samples", tag="sessions",
              summary="Its samples, for a trainer", body="SamplesRequest", needs_body=False,
              kinds=(_JSON, _SAFETENSORS)),
    Operation(method="POST", path="/add_worker", tag="workers", summary="Add a worker",
              body="WorkerUrl", needs_body=False, query=(("url", {"type": "string"}),)),
    Operation(method="POST", path="/remove_worker", tag="workers", summary="Remove a worker",
              body="WorkerUrl", needs_body=False, query=(("url", {"type": "string"}),)),
    Operation(method="GET", path="/list_workers", tag="workers", summary="List the workers",
              answer="WorkerUrls"),
    Operation(method="POST", path="/workers", tag="workers", summary="Register a worker",
              body="WorkerRegistration", status=202),
    Operation(method="GET", path="/workers", tag="workers", summary="Show the workers",
              query=(("model", {"type": "string"}),)),
    Operation(method="GET", path="/workers/{name}", tag="workers", summary="Show a worker"),
    Operation(method="PUT", path="/workers/{name}", tag="workers", summary="Change a worker",
              body="WorkerChange", status=202),
    Operation(method="PATCH", path="/workers/{name}", tag="workers", summary="Change a worker",
              body="WorkerChange", status=202),
    Operation(method="DELETE", path="/workers/{name}", tag="workers", summary="Remove a worker",
              status=202, query=(("drain", {"type": "boolean"}),)),
    Operation(method="GET", path="/v1/rl/workers", tag="control", summary="Show the workers"),
    Operation(method="GET", path="/v1/rl/workers/{name}", tag="control", summary="Show a worker"),
    Operation(method="GET", path="/health", tag="operations", summary="Whether the router lives",
              answer="Text", kinds=(_PLAIN,)),
    Operation(method="GET", path="/liveness", tag="operations", summary="The same",
              answer="Text", kinds=(_PLAIN,)),
    Operation(method="GET", path="/readiness", tag="operations",
              summary="Whether a worker can take work; 503 if none can"),
    Operation(method="GET", path="/server_info", tag="operations", summary="What it runs with"),
    Operation(method="GET", path="/get_server_info", tag="operations", summary="The same"),
    Operation(method="GET", path="/metrics", tag="operations", summary="Its numbers",
              kinds=(_JSON, _PLAIN), query=(("format", _FORMAT),)),
    Operation(method="GET", path="/openapi.json", tag="operations", summary="This document"),
)  # fmt: skip
_ENGINE_PATHS: Final = (
    "/workers/{name}/engine/{path}",
    "/v1/rl/workers/{name}/engine/{path}",
    "/v1/rl/engine/{path}",
)


def _control(method: str, path: str, summary: str) -> Operation:
    body = "Object" if method != "GET" else None
    selector = (("selector", {"type": "string"}),)
    return Operation(
        method=method, path=path, tag="control", summary=summary, body=body, needs_body=False,
        kinds=(_JSON, _PLAIN), query=selector,
    )  # fmt: skip


OPERATIONS: Final = (
    *_OWN,
    *(
        _control(method, f"/{path}", f"Tell workers /{path}")
        for path, how in PATHS.items()
        for method in how.methods
    ),
    *(
        _control(method, path, "Tell single workers any path of theirs")
        for path in _ENGINE_PATHS
        for method in ("GET", "POST", "PUT", "PATCH")
    ),
)
"""Everything the router serves itself."""


def add_openapi(app: QuartTrio, *, captures: bool) -> None:
    """``GET /openapi.json`` on ``app``."""

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return json_response(document(captures=captures))


@functools.cache
def document(*, captures: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document; ``captures``: of a router that captures."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        if captures or not operation.captures:
            paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Slime Router", "version": version("slime-router")},
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Without keys nobody needs one.
        "security": [{}, {"key": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {
            str(operation.status): _answer(operation),
            "default": {"description": "An error", "content": {_JSON: {"schema": ref("Error")}}},
        },
    }
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.body is not None:
        content = {_JSON: {"schema": ref(operation.body)}}
        described["requestBody"] = {"required": operation.needs_body, "content": content}
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "Done"}
    schemas = {kind: ref(operation.answer) if kind == _JSON else {} for kind in operation.kinds}
    return {
        "description": "Done",
        "content": {kind: {"schema": schema} for kind, schema in schemas.items()},
    }


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    text = {"type": "string", "minLength": 1}
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": text}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    in_query = [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query]
    return in_path + in_query
