"""The generating endpoints: from a request that has arrived to the relay.

Each takes the router, the request and the way back, like :mod:`slime_trio.relay`; a listener needs
to know nothing else.
"""

from __future__ import annotations

import time

import msgspec

from slime_core import openai, sglang
from slime_core.errors import ClientError
from slime_trio.dialects import ChatDialect, CompletionsDialect, NativeDialect
from slime_trio.exchange import Inbound, Reply
from slime_trio.offload import off_loop
from slime_trio.relay import forward, relay
from slime_trio.router import Router

__all__ = ["chat_completions", "completions", "generate", "served_model"]


async def generate(router: Router, inbound: Inbound, reply: Reply) -> None:
    """``POST /generate``. Raises ``SlimeError`` before ``reply`` was started."""
    if not router.captures:
        await forward(router, inbound, reply)
        return
    request = await off_loop(len(inbound.body), sglang.parse_generate, inbound.body)
    if request.opaque:
        await forward(router, inbound, reply, reason="not_capturable")
        return
    await relay(router, inbound, reply, NativeDialect(request, inbound))


async def chat_completions(router: Router, inbound: Inbound, reply: Reply) -> None:
    """``POST /v1/chat/completions``. Raises likewise."""
    if not router.captures:
        await forward(router, inbound, reply)
        return
    tokenizer = router.tokenizer
    chat = await off_loop(
        len(inbound.body),
        openai.parse_chat,
        inbound.body,
        vocabulary_size=tokenizer.vocab_size,
    )
    if chat.common.session:
        await forward(router, inbound, reply, reason="not_capturable")
        return
    rendered = None
    if chat.input_ids is None:
        rendered = await _render(router, chat)
    dialect = ChatDialect(
        chat,
        inbound,
        rendered=rendered,
        vocabulary=tokenizer.vocabulary,
        model=chat.model,
        created=int(time.time()),
        context_length=router.context_length,
    )
    await relay(router, inbound, reply, dialect)


async def _render(router: Router, chat: openai.ChatRequest) -> str:
    if chat.continue_final_message:
        raise ClientError(
            "continue_final_message is not supported yet",
            code="unsupported_value",
            param="continue_final_message",
        )
    template = await router.template()
    return template.render(
        msgspec.to_builtins(chat.messages),
        tools=msgspec.to_builtins(chat.tools) or None,
        add_generation_prompt=True,
        chat_template_kwargs=chat.template_kwargs,
    )


async def completions(router: Router, inbound: Inbound, reply: Reply) -> None:
    """``POST /v1/completions``. Raises likewise."""
    if not router.captures:
        await forward(router, inbound, reply)
        return
    tokenizer = router.tokenizer
    request = await off_loop(
        len(inbound.body),
        openai.parse_completion,
        inbound.body,
        vocabulary_size=tokenizer.vocab_size,
    )
    if request.common.session:
        await forward(router, inbound, reply, reason="not_capturable")
        return
    dialect = CompletionsDialect(
        request,
        inbound,
        vocabulary=tokenizer.vocabulary,
        model=request.model,
        created=int(time.time()),
        context_length=router.context_length,
    )
    await relay(router, inbound, reply, dialect)


def served_model(router: Router) -> str:
    """The model's name in ``/v1/models``."""
    if router.args.served_model_name is not None:
        return router.args.served_model_name
    return router.checkpoint.path.resolve().name if router.checkpoint is not None else "default"
