"""A worker that thinks in no time: the answer's length is all that a request decides.

``python -m benchmarks.canned_worker CHECKPOINT`` speaks as much of SGLang's ``/generate`` as a
router needs. ``custom_params`` of the sampling parameters may hold ``per_event`` (tokens in each
event of a stream) and ``cumulative``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from benchmarks.grove import Speech
from slime_trio.tokenizer import load_checkpoint

__all__ = ["main"]


class _Answer:
    """What is given to a request, whole or in events."""

    def __init__(self, speech: Speech, vocabulary: Any, request: dict[str, Any]) -> None:
        sampling = request.get("sampling_params") or {}
        self._vocabulary = vocabulary
        self._rid = request.get("rid") or "canned"
        self._prompt = len(request["input_ids"])
        self._ids, self._text = speech.say(int(sampling.get("max_new_tokens") or 16))
        custom = sampling.get("custom_params") or {}
        self._per_event = int(custom.get("per_event", 50))
        self._cumulative = bool(custom.get("cumulative"))

    def whole(self) -> bytes:
        """The answer as one body."""
        return self._encoded(0, len(self._ids), self._text)

    def events(self) -> Iterator[bytes]:
        """The answer as server-sent events."""
        for start in range(0, len(self._ids), self._per_event):
            stop = min(len(self._ids), start + self._per_event)
            first = 0 if self._cumulative else start
            text = self._decode(stop)[0 if self._cumulative else len(self._decode(start)) :]
            yield b"data: " + self._encoded(first, stop, text) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _decode(self, stop: int) -> str:
        text: str = self._vocabulary.decode(self._ids[:stop], skip_special=True, at_start=False)
        return text

    def _encoded(self, start: int, stop: int, text: str) -> bytes:
        ended = stop == len(self._ids)
        ids = self._ids[start:stop]
        meta = {
            "id": self._rid,
            "finish_reason": {"type": "length", "length": stop} if ended else None,
            "prompt_tokens": self._prompt,
            "completion_tokens": stop,
            "cached_tokens": 0,
            "weight_version": "1",
            "output_token_logprobs": [
                (-(place % 1024) / 256 - 2**-20, token, None)
                for place, token in enumerate(ids, start)
            ],
        }
        return msgspec.json.encode({"text": text, "output_ids": ids, "meta_info": meta})


def _handler(checkpoint: str) -> type[BaseHTTPRequestHandler]:
    tokenizer = load_checkpoint(checkpoint).tokenizer
    speech = Speech(tokenizer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.path in ("/model_info", "/get_model_info")
            self._say(b'{"weight_version":"1"}' if known else b"{}", 200 if known else 404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/generate":
                self._say(b"{}", 404)
                return
            request = msgspec.json.decode(body)
            answer = _Answer(speech, tokenizer.vocabulary, request)
            if request.get("stream"):
                self._stream(answer)
            else:
                self._say(answer.whole(), 200)

        def _say(self, body: bytes, status: int) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, answer: _Answer) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in answer.events():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    return Handler


def main() -> None:
    """Serve on a free port until ended."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(sys.argv[1]))
    print(f"listens on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
