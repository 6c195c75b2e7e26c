"""Recorded traces: what stands in them, and that writing them disturbs nobody."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from slime_trio.app import create_router
from slime_trio.config import ConfigurationError, Settings
from slime_trio.trace import TracedCall, TraceError, TraceRecorder, read_trace
from tests.server.harness import (
    CHECKPOINT,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    json_answer,
    router_with,
    settled,
)

PARAMS = {"max_new_tokens": 4, "ignore_eos": True}
LINE: dict[str, Any] = {
    "at_s": 10.5, "duration_s": 0.25, "session": None, "call": "a", "parent": None,
    "prompt": "1/0", "kept_tokens": 0, "new_tokens": 7, "answer_tokens": 3,
    "worker": "http://w:1", "outcome": "complete", "finish": "stop",
}  # fmt: skip


def write_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def recording(served: Served, path: Path | str, **more: Any) -> TraceRecorder:
    """A recorder that observes this router."""
    recorder = TraceRecorder(path, **more)
    served.router.observers.append(recorder)
    return recorder


async def finished(served: Served, recorder: TraceRecorder) -> None:
    await settled(served)
    await trio.to_thread.run_sync(recorder.close)


# -- what is recorded --------------------------------------------------------------------


async def test_a_call_is_recorded_with_its_lengths_worker_and_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with embedded_worker() as worker, router_with(worker.url) as served:
        recorder = recording(served, path)
        headers = {"x-session-id": "blue"}
        body = {"text": "A first question:", "sampling_params": PARAMS}
        first = await served.client.post("/generate", json=body, headers=headers)
        body["text"] = f"{body['text']}{first.json()['text']} and more"
        second = await served.client.post("/generate", json=body, headers=headers)
        await finished(served, recorder)
        one, two = read_trace(path)
        ids = [answer.headers["x-slime-call-id"] for answer in (first, second)]
        assert [one.call, two.call] == ids
        assert (one.parent, two.parent) == (None, one.call)
        assert (one.session, one.worker, one.outcome) == ("blue", worker.url, "complete")
        assert (one.kept_tokens, two.kept_tokens) == (0, one.new_tokens + one.answer_tokens)
        prompts = [len(record.prompt_ids) for record in worker.records]
        assert [call.kept_tokens + call.new_tokens for call in (one, two)] == prompts
        assert (one.answer_tokens, one.finish) == (4, "length")


async def test_times_are_those_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    ticks = iter(range(100, 200))
    async with embedded_worker() as worker, router_with(worker.url) as served:
        recorder = recording(served, path, clock=lambda: float(next(ticks)))
        await served.generate(text="x", sampling_params=PARAMS)
        await finished(served, recorder)
    (call,) = read_trace(path)
    assert (call.at_s, call.duration_s) == (101.0, 1.0)


async def test_calls_of_one_prompt_share_its_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with embedded_worker() as worker, router_with(worker.url) as served:
        recorder = recording(served, path)
        for text in ("One prompt", "One prompt", "Another prompt"):
            await served.generate(text=text, sampling_params=PARAMS | {"n": 2})
        await finished(served, recorder)
    calls = read_trace(path)
    assert [calls[0].prompt == call.prompt for call in calls] == [True] * 4 + [False] * 2
    assert {call.parent for call in calls} == {None}


async def test_no_text_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    item = answer_item([5], "a secret answer")
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        recorder = recording(served, path)
        await served.generate(text="a secret question", sampling_params=PARAMS)
        await finished(served, recorder)
    assert b"secret" not in path.read_bytes()


async def test_what_is_not_captured_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    item = answer_item([5], "a", completion_tokens=3)
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        recorder = recording(served, path)
        await served.generate(text="Hello")
        await served.client.get("/some/other/path")
        await finished(served, recorder)
    assert path.read_bytes() == b""


async def test_an_aborted_answer_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    item = answer_item([5], "a", finish={"type": "abort", "message": "x"})
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        recorder = recording(served, path)
        await served.generate(text="Hello")
        await finished(served, recorder)
    (call,) = read_trace(path)
    assert (call.outcome, call.finish) == ("aborted", "abort")


# -- the file ----------------------------------------------------------------------------


async def test_a_full_disk_is_said_once_and_counted_and_breaks_no_request(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        recorder = recording(served, "/dev/full")
        for _ in range(3):
            answer = await served.generate(text="x", sampling_params=PARAMS)
            assert answer.status_code == 200
        await finished(served, recorder)
        assert (recorder.written, recorder.lost) == (0, 3)
        metrics = await served.client.get("/metrics?format=prometheus")
        assert "slime_trace_lines_lost_total 3.0" in metrics.text
        assert (await served.client.get("/metrics")).json()["router"]["trace_lines_lost"] == 3
    said = capfd.readouterr().err
    assert said.count("lines are lost") == 1
    assert "No space left" in said
    assert said.count("incomplete") == 1
    assert "lost=3" in said


async def test_lines_beyond_what_may_wait_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with embedded_worker() as worker, router_with(worker.url) as served:
        recorder = recording(served, path, waiting_most=1)
        # The calls of one request are committed without a pause in which the thread could write
        # them all: more come than may wait.
        await served.generate(text="x", sampling_params=PARAMS | {"n": 64})
        await finished(served, recorder)
    assert recorder.written + recorder.lost == 64
    assert len(read_trace(path)) == recorder.written


def test_a_batch_that_does_not_fit_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    code = """
import resource, sys
from slime_trio.trace import _TraceFile
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
file = _TraceFile(sys.argv[1])
line = b'{"at_s":12345678}\\n'
for lines in ([line], [line, line], [line]):
    file.append(lines)
print(file.written, file.lost)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-2:] == ["2", "2"], done.stderr
    assert path.read_bytes() == b'{"at_s":12345678}\n' * 2


def test_a_trace_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "trace.jsonl", LINE)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b": ", b":") + b'{"at_s":99,"dur')
    TraceRecorder(path).close()
    assert path.read_bytes() == whole.replace(b": ", b":")


def test_a_file_that_is_no_trace_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(TraceError, match="is no trace"):
        TraceRecorder(path)
    assert path.read_text() == "precious"


def test_a_recorder_may_be_closed_twice(tmp_path: Path) -> None:
    recorder = TraceRecorder(tmp_path / "trace.jsonl")
    recorder.close()
    recorder.close()
    assert recorder.lost == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"record_trace": "/does/not/exist/trace"}, "--record-trace: /does/not/exist/trace: No s"),
        ({"record_trace": "/tmp"}, "--record-trace: /tmp: Is a directory"),
        ({"record_trace": "x", "capture": False}, "--capture is off"),
    ],
)
def test_a_trace_that_cannot_be_recorded_keeps_the_router_from_starting(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        create_router(Settings(**{"hf_checkpoint": CHECKPOINT} | settings))


async def test_the_trace_is_complete_when_the_router_has_stopped(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    async with embedded_worker() as worker:
        words = ["--host", "127.0.0.1", "--port", "0", "--hf-checkpoint", CHECKPOINT]
        words += ["--worker-url", worker.url, "--record-trace", str(path)]
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(_serve_some_calls, words, 20) == 0
    assert len(read_trace(path)) == 20


def _serve_some_calls(words: list[str], calls: int) -> int:
    """Start a router, generate, ask it to stop; its exit status."""
    command = [sys.executable, "-m", "slime_trio", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr)
            listens = next(line for line in lines if "listens on" in line)
            next(line for line in lines if "takes work" in line)
            url = listens.split("listens on ")[1].strip()
            with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
                for _ in range(calls):
                    body = {"text": "x", "sampling_params": PARAMS}
                    client.post("/generate", json=body).raise_for_status()
            process.send_signal(signal.SIGTERM)
            return process.wait(20)
        finally:
            process.kill()


# -- reading -----------------------------------------------------------------------------


def test_calls_come_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t", LINE | {"call": "b", "at_s": 11}, LINE)
    assert [call.call for call in read_trace(path)] == ["a", "b"]


def test_a_line_reads_as_it_was_written(tmp_path: Path) -> None:
    assert read_trace(write_lines(tmp_path / "t", LINE)) == [TracedCall(**LINE)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (LINE | {"call": "b", "kept_tokens": "many"}, ["line 2", "kept_tokens", "int"]),
        (LINE | {"call": "b", "answer_tokens": -1}, ["line 2", "answer_tokens", ">= 0"]),
        (LINE | {"call": "b", "new_tokens": 10**13}, ["line 2", "new_tokens", "<= 1000000000000"]),
        (LINE | {"call": "b", "at_s": 1e300}, ["line 2", "at_s", "<= 1000000000000"]),
        ({k: v for k, v in LINE.items() if k != "at_s"}, ["line 2", "at_s"]),
        (LINE | {"call": "b", "colour": "blue"}, ["line 2", "colour"]),
        (LINE, ["line 2", "'a'", "twice"]),
    ],
)
def test_a_malformed_line_is_named_with_its_field(
    tmp_path: Path, line: dict[str, Any], words: list[str]
) -> None:
    path = write_lines(tmp_path / "t", LINE, line)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no calls"),
        (b"{\n", "line 1: not a line of JSON"),
        (b"\n", "line 1: not a line of JSON"),
        (b'{"call":"\xff"}\n', "line 1"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=words):
        read_trace(path)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nowhere"):
        read_trace(tmp_path / "nowhere")
