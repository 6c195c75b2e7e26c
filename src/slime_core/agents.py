"""What an agent that holds a session's key may ask for, and what it is shown.

An agent is whatever the model talks to, and the model's words may steer it. So its key opens what
OpenAI's parameters give and no more: text, and the logprobs of OpenAI's own ``logprobs``. Token
ids, logprobs in SGLang's form, routed experts, hidden states and ``meta_info`` are the trainer's.
What is asked for explicitly and not given is refused by name; what a worker tells unasked is left
out. Routed experts and sampling masks may be asked for: they are captured for the trainer, and not
shown. Refused is also what reaches beyond the session: a worker's own sessions, code for a worker's
sampler, and where a prefill worker is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from slime_core import openai, sglang
from slime_core.decide import find_call
from slime_core.errors import ClientError
from slime_core.sglang.errors import read_json
from slime_core.state import RouterState
from slime_core.strict_json import is_null

__all__ = ["check_generate", "check_openai", "check_parent", "shown_answer", "shown_item"]

_BEYOND: Final = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "custom_logit_processor",
        "session_id",
        "session_params",
    }
)
_SHOWING: Final = "return_"
"""With this begins whatever asks for more than text (SGLang 0.5.23, ``GenerateReqInput``)."""
_UNSHOWN: Final = frozenset(
    {
        "return_indexer_topk",
        "return_routed_experts",
        "return_sampling_mask",
        "return_text_in_logprobs",
    }
)
"""What changes nothing of what is shown, and perhaps what a trainer gets."""
_FALSE: Final = (b"null", b"false", b"[]", b"{}", b"0")
_SHOWN_META: Final = (
    "id",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
)
_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_ITEMS: Final = msgspec.json.Decoder(list[Raw])
_ABSENT: Final = Raw(b"null")


def check_generate(request: sglang.GenerateRequest) -> None:
    """Raise ``ClientError`` (403) for a ``/generate`` request that asks for what is not shown."""
    if any(request.wants_logprobs):
        raise _withheld("return_logprob")
    for name, raw in request.fields.items():
        if name in _BEYOND and not is_null(raw):
            raise _withheld(name)
        if name != "return_logprob" and _shows(name, raw):
            raise _withheld(name)
    if request.opaque:
        raise ClientError(
            "a session key opens generation that is captured, and this cannot be: it is not all "
            "text or ids",
            status=403,
            code="session_key_forbids",
        )


def check_openai(request: openai.Request) -> None:
    """Likewise for a request of OpenAI's dialects."""
    common = request.common
    asked = {
        "return_token_ids": common.return_token_ids,
        "return_prompt_token_ids": common.return_prompt_token_ids,
        "return_meta_info": getattr(request, "return_meta_info", False),
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise _withheld(name)
    for name, raw in common.forwarded.items():
        if name in _BEYOND or _shows(name, raw):
            raise _withheld(name)


def check_parent(state: RouterState, session: str | None, parent: str | None) -> None:
    """Raise ``ClientError`` (404) if ``parent`` names no call of ``session``.

    The words are the same whether it is another session's or nobody's.
    """
    if parent is None:
        return
    try:
        answer = state.forest.calls[find_call(state, parent)].answer
    except ClientError:
        answer = None
    if answer is None or answer.session != session:
        raise ClientError(
            "no call of this session has this id",
            status=404,
            code="unknown",
            param="parent_id",
        )


def shown_answer(body: bytes, *, array: bool) -> bytes:
    """A worker's whole answer as an agent is shown it. Raises ``WorkerError``."""
    if not array:
        return shown_item(body)
    items = read_json(_ITEMS, body, "the answers")
    return b"[" + b",".join(map(shown_item, items)) + b"]"


def shown_item(data: bytes | Raw) -> bytes:
    """One answer, or one event of a stream: its text, its counts and why it ended."""
    fields = read_json(_FIELDS, data, "the answer")
    told = read_json(_FIELDS, fields.get("meta_info", _ABSENT), "meta_info")
    meta: dict[str, Raw] = {name: told[name] for name in _SHOWN_META if name in told}
    if "finish_reason" in told:
        meta["finish_reason"] = _reason(told["finish_reason"])
    shown = {name: fields[name] for name in ("text", "index") if name in fields}
    return msgspec.json.encode({**shown, "meta_info": meta})


def _shows(name: str, raw: Raw) -> bool:
    """Whether a field asks for more to be shown."""
    return name.startswith(_SHOWING) and name not in _UNSHOWN and bytes(raw) not in _FALSE


def _reason(raw: Raw) -> Raw:
    """Why it ended, without the tokens that ended it."""
    if is_null(raw):
        return raw
    told: Mapping[str, Raw] = read_json(_FIELDS, raw, "finish_reason")
    return Raw(msgspec.json.encode({n: v for n, v in told.items() if not _names_tokens(n, v)}))


def _names_tokens(name: str, value: Raw) -> bool:
    return name == "matched" and not bytes(value).startswith(b'"')


def _withheld(param: str) -> ClientError:
    return ClientError(
        f"{param} is not for a session key: it opens what OpenAI's parameters give, in its session",
        status=403,
        code="session_key_forbids",
        param=param,
    )
