"""How each client dialect looks to the relay."""

from slime_trio.dialects.agent import AgentDialect
from slime_trio.dialects.base import Dialect
from slime_trio.dialects.native import NativeDialect
from slime_trio.dialects.openai_base import Serving
from slime_trio.dialects.openai_chat import ChatDialect
from slime_trio.dialects.openai_completions import CompletionsDialect

__all__ = [
    "AgentDialect",
    "ChatDialect",
    "CompletionsDialect",
    "Dialect",
    "NativeDialect",
    "Serving",
]
