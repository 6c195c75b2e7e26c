"""Parts of the router by the files of its functions: what a profile of it is told in.

A sample counts for the part of the innermost frame that has one, so that shares add up to all of
it and nothing counts twice. What has no part of its own (a radix tree, a JSON decoder, a context
manager) counts for whoever called it: the look-up, the request's parsing, the dispatch. Threads
that wait, for sockets or for a lock, are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final

__all__ = ["FILES", "NATIVE", "REST", "busy", "parts_of", "samples", "within"]

REST: Final = "the rest: the interpreter's start, other threads, what has no part"

NATIVE: Final[Mapping[str, tuple[str, ...]]] = {
    "system calls: send": ("send", "sendmsg", "__send", "__libc_send", "__libc_sendmsg"),
    "system calls: receive": ("recv", "recv_into", "__recv", "__libc_recv", "__libc_recvfrom"),
    "system calls: epoll_ctl": ("epoll_ctl",),
    "the interpreter's lock, between threads": (
        *("pthread_cond_signal", "sem_post", "__lll_lock_wait", "__lll_lock_wake"),
    ),
    "garbage collector": ("gc_collect_main", "gc_collect_generations", "_PyGC_CollectNoFail"),
}
"""Functions of the C library and of the interpreter, by their names in a profile."""

_WAITING: Final = frozenset(
    {"epoll_wait", "poll", "PyThread_acquire_lock_timed", "pthread_cond_timedwait", "take_gil"}
)
"""A thread within one of these waits: for sockets, for a lock, for the interpreter."""

FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "Trio's scheduler": ("trio/", "outcome/"),
    "threads: handing work over and back": (
        *("trio/_threads.py", "trio/_core/_thread_cache.py", "trio/_core/_entry_queue.py"),
        "slime_trio/offload.py",
    ),
    "Hypercorn, Quart and their parsers": (
        *("hypercorn/", "quart/", "quart_trio/", "werkzeug/", "h11/", "flask/"),
        *("slime_trio/quart_listener.py", "slime_trio/app.py"),
    ),
    "listener: connections, requests' heads, answers' bytes": (
        *("slime_trio/listener/", "slime_trio/limits/", "slime_trio/byte_stream.py"),
        *("slime_trio/auth.py", "slime_trio/error_answers.py", "slime_trio/connection_endings.py"),
        *("slime_trio/in_session.py", "slime_trio/endpoints.py", "slime_trio/session_routes.py"),
        *("slime_trio/request_id.py", "slime_trio/middleware.py"),
    ),
    "dispatch: a worker, its slot, its health": (
        *("slime_trio/dispatch/", "slime_trio/exchange.py", "slime_trio/attempts.py"),
        *("slime_trio/tending/", "slime_core/placing.py", "slime_core/fleet.py"),
        *("slime_core/health.py", "slime_core/policies/", "slime_core/admission.py"),
        *("slime_core/retries.py", "slime_core/second_tries.py"),
    ),
    "upstream: connections to workers": ("slime_trio/upstream/",),
    "metrics, logs, traces": ("slime_trio/observability/", "slime_trio/observers.py"),
    "relay: a request from its body to its answer": (
        *("slime_trio/relay.py", "slime_trio/capture.py", "slime_trio/dialects/"),
        *("slime_trio/recording.py", "slime_trio/passing.py", "slime_trio/renaming.py"),
        *("slime_trio/router.py", "slime_trio/shared.py", "slime_core/capture.py"),
        *("slime_core/sglang/renaming.py", "slime_core/sglang/strip.py"),
    ),
    "parsing the request": ("slime_core/sglang/request.py", "slime_core/sglang/asked.py"),
    "the body for the worker (JSON of ids)": (
        *("slime_core/sglang/compose.py", "slime_core/sglang/queued.py", "slime_core/lifted.py"),
        "slime_core/id_texts.py",
    ),
    "look-up of the prompt": (
        *("slime_core/lookup.py", "slime_core/history.py", "slime_core/history_looks.py"),
        "slime_core/decide.py",
        *("slime_core/boundaries.py", "slime_core/alignment.py", "slime_core/prefixes.py"),
        "slime_core/chat/",
    ),
    "tokenizer and templates": (
        *("slime_trio/tokenizer.py", "slime_trio/hard_tokens.py", "slime_trio/chat_template.py"),
        *("slime_trio/chat_messages.py", "slime_trio/chat_renderer.py", "tokenizers/"),
        *("slime_trio/ascii_words.py", "slime_trio/chatting.py"),
    ),
    "parsing the answer": (
        *("slime_core/sglang/answer.py", "slime_core/sglang/frame.py", "slime_core/versions.py"),
        *("slime_core/sglang/tokens.py", "slime_core/logprob_kinds.py"),
        "slime_core/sglang/told.py",
        "slime_core/detokenize.py",
    ),
    "a stream's events": (
        *("slime_core/sse.py", "slime_core/sglang/stream.py", "slime_core/sglang/stream_event.py"),
        *("slime_core/sglang/stream_sample.py", "slime_core/sglang/repetition.py"),
        *("slime_core/sglang/stream_step.py", "slime_trio/streaming.py", "slime_trio/line_cuts.py"),
    ),
    "OpenAI's form of an answer": ("slime_core/openai/", "slime_core/parsing/"),
    "applying and keeping": (
        *("slime_core/state.py", "slime_core/forest.py", "slime_core/transitions.py"),
        *("slime_core/calls.py", "slime_core/gone.py", "slime_core/purse.py"),
        *("slime_core/segments.py", "slime_core/sessions.py", "slime_trio/memory.py"),
        "slime_core/unread.py",
    ),
    "retrieval: deriving columns, their JSON": (
        *("slime_trio/retrieval.py", "slime_core/trajectory.py", "slime_core/samples/"),
    ),
}
"""Files, or folders, of each part: a frame belongs to the part with the longest that it has."""

_PLACES: Final = sorted(
    ((place, part) for part, places in FILES.items() for place in places),
    key=lambda pair: -len(pair[0]),
)
_CALLED: Final = {name: part for part, names in NATIVE.items() for name in names}


def samples(stacks: str) -> list[tuple[list[str], int]]:
    """py-spy's raw format: the frames of each stack, from the outermost on, and how often seen."""
    found = []
    for line in stacks.splitlines():
        frames, _, number = line.rpartition(" ")
        if number.isdigit():
            found.append((frames.split(";"), int(number)))
    return found


def busy(stacks: str) -> list[tuple[list[str], int]]:
    """The samples of threads that did not wait."""
    return [
        (frames, number)
        for frames, number in samples(stacks)
        if not any(_name(frame) in _WAITING for frame in frames)
    ]


def parts_of(stacks: str) -> dict[str, float]:
    """The share of each part in what did not wait, the largest first; together 1."""
    seen = Counter[str]()
    for frames, number in busy(stacks):
        seen[_part(frames)] += number
    return {part: number / seen.total() for part, number in seen.most_common()}


def within(stacks: str) -> dict[str, dict[str, float]]:
    """Of each part the functions of Python, by their shares of the whole, the largest first.

    What they call that is not Python counts for them.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for frames, number in busy(stacks):
        python = (frame for frame in reversed(frames) if ".py:" in frame)
        name = next(python, frames[-1]).rpartition(" (")[0]
        seen[_part(frames)][name] += number
    total = sum(some.total() for some in seen.values())
    return {
        part: {name: number / total for name, number in some.most_common()}
        for part, some in seen.items()
    }


def _part(frames: list[str]) -> str:
    named = (part for frame in reversed(frames) if (part := _of(frame)) is not None)
    return next(named, REST)


def _name(frame: str) -> str:
    return frame.rpartition(" (")[0]


def _of(frame: str) -> str | None:
    """The part of a frame such as ``Forest.capture (slime_core/forest.py:12)``."""
    name, _, place = frame.rpartition(" (")
    if name in _CALLED:
        return _CALLED[name]
    return next((part for prefix, part in _PLACES if place.startswith(prefix)), None)
