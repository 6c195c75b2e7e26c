"""OpenAI's dialect: chat completions, completions and models, over a worker's ``/generate``."""

from slime_core.openai.chat import ChatRequest, check_context, generate_body, parse_chat
from slime_core.openai.chunks import ChunkFramer
from slime_core.openai.completions import CompletionRequest, completions_body, parse_completion
from slime_core.openai.echo import Echo, echo_of, prompt_scores
from slime_core.openai.finish import finish_word
from slime_core.openai.framing import Framer
from slime_core.openai.logprobs import TokenBook
from slime_core.openai.messages import Message
from slime_core.openai.params import Request, check_ids
from slime_core.openai.pieces import CallHead, CallPiece, ContentPiece, Piece, ReasoningPiece
from slime_core.openai.reader import NO_PARSERS, AnswerReader, Reading
from slime_core.openai.response import Named, completion, message_of, model_card, model_list, usage
from slime_core.openai.text_completion import TextChunkFramer, text_completion
from slime_core.openai.tools import Tool

__all__ = [
    "NO_PARSERS",
    "AnswerReader",
    "CallHead",
    "CallPiece",
    "ChatRequest",
    "ChunkFramer",
    "CompletionRequest",
    "ContentPiece",
    "Echo",
    "Framer",
    "Message",
    "Named",
    "Piece",
    "Reading",
    "ReasoningPiece",
    "Request",
    "TextChunkFramer",
    "TokenBook",
    "Tool",
    "check_context",
    "check_ids",
    "completion",
    "completions_body",
    "echo_of",
    "finish_word",
    "generate_body",
    "message_of",
    "model_card",
    "model_list",
    "parse_chat",
    "parse_completion",
    "prompt_scores",
    "text_completion",
    "usage",
]
