"""How an agent reads what it is answered, in each of the three dialects, whole or streamed.

Both harnesses hand over the very bytes that the router sent; what they mean is read here once, with
plain JSON and plain string operations, and with nothing of the router's own decoders.
"""

from __future__ import annotations

import json
from typing import Any

from tests.simulate.story import Ending, Exchange, Got, Story

__all__ = ["Reader"]


class Reader:
    """Fills one exchange. Call :meth:`head` once, :meth:`data` as it comes, and one ending."""

    def __init__(self, story: Story, exchange: Exchange) -> None:
        self._story = story
        self._exchange = exchange
        self._buffer = b""
        self._streams = False
        exchange.samples = [Got() for _ in range(exchange.ask.samples)]
        story.marks[f"kind:{exchange.ask.kind.value}"] += 1

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Status and header fields; names in lower case."""
        exchange = self._exchange
        exchange.status, exchange.headers = status, headers
        kind = headers.get("content-type", "")
        # Whoever asked for one JSON object reads one, whatever it is called.
        self._streams = (
            status == 200 and exchange.ask.stream and kind.startswith("text/event-stream")
        )

    def data(self, data: bytes) -> None:
        """A piece of the body, read just now."""
        self._exchange.body += data
        if not self._streams:
            return
        self._buffer += data
        *events, self._buffer = self._buffer.split(b"\n\n")
        for event in events:
            lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                self._event(b"\n".join(line[5:].removeprefix(b" ") for line in lines))

    def end(self, now: float) -> None:
        """The message came to its proper end."""
        exchange = self._exchange
        exchange.last_byte_at = self._story.tick()
        if exchange.status != 200:
            told = _json(bytes(exchange.body))
            exchange.error = told if isinstance(told, dict) else {}
        elif not self._streams:
            self._whole(bytes(exchange.body))
        failed = exchange.status != 200 or exchange.error is not None
        self._close(Ending.ERROR if failed else Ending.COMPLETE, now)

    def broken(self, now: float) -> None:
        """The connection ended before the message did."""
        self._close(Ending.BROKEN, now)

    def left(self, now: float) -> None:
        """The agent itself goes away."""
        self._close(Ending.LEFT, now)

    def _close(self, ending: Ending, now: float) -> None:
        exchange = self._exchange
        exchange.ending, exchange.ended_s = ending, now
        self._story.marks[f"ending:{ending.value}"] += 1
        for flag in exchange.flags:
            self._story.marks[f"flag:{flag}"] += 1
        if exchange.error is not None:
            self._story.marks[f"error:{_code(exchange.error)}"] += 1

    def _whole(self, body: bytes) -> None:
        told = _json(body)
        if not isinstance(told, dict | list):
            self._exchange.error = {}
        elif isinstance(told, list) or self._exchange.ask.path == "/generate":
            for got, item in zip(
                self._exchange.samples, told if isinstance(told, list) else [told], strict=False
            ):
                self._native(got, item, cumulative=True)
        else:
            for choice in told.get("choices", ()):
                got = self._exchange.samples[choice["index"]]
                got.message = choice.get("message")
                got.text = (got.message["content"] if got.message else choice["text"]) or ""
                self._finish(got, choice.get("finish_reason"))

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        told = _json(data)
        if told is None or not isinstance(told, dict):
            return
        if told.get("error") is not None:
            self._exchange.error = told
        elif self._exchange.ask.path == "/generate":
            place = told.get("index") or 0
            if isinstance(place, int) and 0 <= place < len(self._exchange.samples):
                self._native(self._exchange.samples[place], told, cumulative=False)
        else:
            for choice in told.get("choices", ()):
                self._choice(self._exchange.samples[choice["index"]], choice)

    def _choice(self, got: Got, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if delta is None:
            got.text += choice.get("text") or ""
        else:
            got.message = _added(got.message, delta)
            got.text = got.message.get("content") or ""
        self._finish(got, choice.get("finish_reason"))

    def _native(self, got: Got, item: Any, *, cumulative: bool) -> None:
        """One answer or event. Events repeat everything, or bring what is new: sizes tell."""
        if not isinstance(item, dict) or not isinstance(item.get("meta_info"), dict):
            return
        meta, ids = item["meta_info"], item.get("output_ids")
        text = item.get("text")
        if isinstance(ids, list) and all(isinstance(one, int) for one in ids):
            held = got.ids or []
            repeats = cumulative or len(ids) == meta.get("completion_tokens")
            got.ids = ids if repeats else held + ids
            if isinstance(text, str):
                got.text = text if repeats else got.text + text
        elif isinstance(text, str):
            got.text = text
        self._finish(got, meta.get("finish_reason"))

    def _finish(self, got: Got, reason: Any) -> None:
        if reason is not None and got.finish is None:
            got.finish = reason if isinstance(reason, dict) else {"type": reason}
            got.told_at = self._story.tick()


def _added(message: dict[str, Any] | None, delta: dict[str, Any]) -> dict[str, Any]:
    """The message so far with what a chunk adds to it, as SDKs add it up."""
    whole = dict(message or {"role": "assistant", "content": None})
    for name in ("content", "reasoning_content"):
        if delta.get(name):
            whole[name] = (whole.get(name) or "") + delta[name]
    calls = [dict(call) for call in whole.get("tool_calls") or ()]
    for piece in delta.get("tool_calls") or ():
        while len(calls) <= piece["index"]:
            calls.append({"id": None, "type": "function", "function": {}})
        call = calls[piece["index"]]
        call["id"] = piece.get("id") or call["id"]
        told = piece.get("function") or {}
        call["function"] = {
            "name": call["function"].get("name") or told.get("name"),
            "arguments": call["function"].get("arguments", "") + (told.get("arguments") or ""),
        }
    if calls:
        whole["tool_calls"] = calls
    return whole


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _code(error: dict[str, Any]) -> str:
    inner = error.get("error", error)
    return str(inner.get("code")) if isinstance(inner, dict) else str(inner)
