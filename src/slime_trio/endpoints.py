"""The generating endpoints: from a request that has arrived to the relay.

Each takes the router, the request and the way back, like :mod:`slime_trio.relay`; a listener needs
to know nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from slime_core import openai, sglang
from slime_core.agents import check_openai, check_parent
from slime_core.chat.canonical import conversation
from slime_core.chat.plans import ChatAsk, History
from slime_trio.config import Settings
from slime_trio.dialects import (
    AgentDialect,
    ChatDialect,
    CompletionsDialect,
    Dialect,
    NativeDialect,
    Serving,
)
from slime_trio.exchange import Inbound, Reply
from slime_trio.offload import is_short, off_loop
from slime_trio.relay import relay
from slime_trio.renaming import forward_renamed
from slime_trio.router import Router

__all__ = ["chat_completions", "completions", "generate"]

R = TypeVar("R", bound=openai.Request)


def generate(router: Router, inbound: Inbound, reply: Reply) -> Awaitable[None]:
    """``POST /generate``. Raises ``SlimeError`` before ``reply`` was started."""
    if not router.shared.captures:
        return forward_renamed(router, inbound, reply)
    return _generate(router, inbound, reply)


async def _generate(router: Router, inbound: Inbound, reply: Reply) -> None:
    body, read_ids = inbound.body, router.shared.known_ids
    if is_short(len(body)):
        request = sglang.parse_generate(body, read_ids=read_ids)
    else:
        request = await off_loop(len(body), sglang.parse_generate, body, read_ids=read_ids)
    if inbound.is_agents:
        await _relay(router, inbound, reply, AgentDialect(request, inbound))
    elif request.opaque:
        await forward_renamed(router, inbound, reply, reason="not_capturable")
    else:
        await relay(router, inbound, reply, NativeDialect(request, inbound))


def _relay(router: Router, inbound: Inbound, reply: Reply, dialect: Dialect) -> Awaitable[None]:
    """As :func:`relay` does; what an agent names must be its session's."""
    if inbound.is_agents:
        check_parent(router.state, inbound.session, dialect.parent)
    return relay(router, inbound, reply, dialect)


async def chat_completions(router: Router, inbound: Inbound, reply: Reply) -> None:
    """``POST /v1/chat/completions``. Raises likewise."""
    chat = await _openai_request(router, inbound, reply, openai.parse_chat)
    if chat is None:
        return
    chatting = await router.chatting()
    ask = None
    if chat.input_ids is None:
        ask = await off_loop(len(inbound.body), _chat_ask, chat, router.args)
        if chat.constrained and not router.can_constrain_behind_reasoning:
            ask = replace(ask, arguments=_NO_THINKING)
    dialect = ChatDialect(chat, inbound, ask=ask, chatting=chatting, **_serving(router))
    await _relay(router, inbound, reply, dialect)


_NO_THINKING: Final = {"enable_thinking": False, "thinking": False}
"""What templates call the switch. A grammar that holds from the first token forbids a model that
thinks to begin as it would."""


def _chat_ask(chat: openai.ChatRequest, settings: Settings) -> ChatAsk:
    """The conversation, and how it is to be gone on with."""
    asked = chat.history or settings.history
    history: History = "template" if asked == "template" else "exact"
    return ChatAsk(
        conversation=conversation(
            chat.messages,
            tools=chat.tools,
            arguments=chat.template_kwargs,
            mode=settings.special_tokens_in_content,
        ),
        history=history,
        continues=chat.continue_final_message,
    )


async def completions(router: Router, inbound: Inbound, reply: Reply) -> None:
    """``POST /v1/completions``. Raises likewise."""
    request = await _openai_request(router, inbound, reply, openai.parse_completion)
    if request is None:
        return
    dialect = CompletionsDialect(request, inbound, **_serving(router))
    await _relay(router, inbound, reply, dialect)


async def _openai_request(
    router: Router, inbound: Inbound, reply: Reply, parse: Callable[..., R]
) -> R | None:
    """The request, or ``None`` if it was passed through: there is no capture, or not of this."""
    if not router.captures:
        await forward_renamed(router, inbound, reply)
        return None
    size = router.tokenizer.vocab_size
    request = await off_loop(len(inbound.body), parse, inbound.body, vocabulary_size=size)
    if inbound.is_agents:
        check_openai(request)
    if request.common.session:
        await forward_renamed(router, inbound, reply, reason="not_capturable")
        return None
    return request


def _serving(router: Router) -> Serving:
    return {
        "vocabulary": router.tokenizer.vocabulary,
        "created": int(time.time()),
        "context_length": router.context_length,
        "can_constrain_behind_reasoning": router.can_constrain_behind_reasoning,
    }
