"""What a simulated worker says besides generating: status and JSON for each path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from slime_core.engine import Engine, Refusal, framework_error
from slime_core.types import Encoding
from tests.simulate.tokens import Tokens
from tests.simulate.workers.pieces import Request

__all__ = ["body_of", "inform", "refusal_body"]


def refusal_body(refusal: Refusal) -> bytes:
    return msgspec.json.encode(refusal.body)


def body_of(request: Request) -> Any:
    """The request's JSON. Raises ``Refusal``."""
    if not request.body:
        raise framework_error("the request has no body")
    try:
        return msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise framework_error(f"the body is not JSON: {error}") from None


def inform(request: Request, engine: Engine, tokens: Tokens) -> tuple[int, bytes]:
    """The answer to a question. Raises ``Refusal``."""
    path = request.target.partition("?")[0]
    match request.method, path:
        case "GET", "/model_info" | "/get_model_info":
            return 200, _model_info(engine, tokens)
        case "GET", "/health" | "/health_generate" | "/ready" | "/ping":
            return (503 if engine.paused is not None and path != "/ping" else 200), b""
        case "GET", "/v1/loads":
            return 200, _loads(engine)
        case "POST", "/tokenize" | "/v1/tokenize":
            return 200, _tokenize(_object(request), engine, tokens)
        case _:
            return 404, b'{"detail":"Not Found"}'


def _object(request: Request) -> Mapping[str, Any]:
    body = body_of(request)
    if not isinstance(body, Mapping):
        raise framework_error("the body must be a JSON object")
    return body


def _model_info(engine: Engine, tokens: Tokens) -> bytes:
    return msgspec.json.encode(
        {
            "model_path": f"/{tokens.name}",
            "tokenizer_path": f"/{tokens.name}",
            "is_generation": True,
            "weight_version": engine.version,
        }
    )


def _loads(engine: Engine) -> bytes:
    load = engine.load
    told = {"num_running_reqs": load.running, "num_waiting_reqs": load.waiting}
    return msgspec.json.encode({"loads": [{"dp_rank": 0, "token_usage": 0.0, **told}]})


def _tokenize(body: Mapping[str, Any], engine: Engine, tokens: Tokens) -> bytes:
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise framework_error("prompt must be a string")
    raw = body.get("add_special_tokens", True) is not False
    encoding = Encoding.RAW if raw else Encoding.RENDERED
    ids = tokens.tokenizer.encode(prompt, encoding=encoding, first=True)
    told = {"tokens": ids, "count": len(ids), "max_model_len": engine.options.context_length}
    return msgspec.json.encode(told)
