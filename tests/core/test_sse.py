"""Server-sent events, compared with a plain reading of the standard."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core import sse
from slime_core.errors import WorkerError
from slime_core.sse import DONE, Decoder, Event, comment, encode

WIRES = {
    "one event": b"data: hello\n\n",
    "sglang stream": b'data: {"text":"Pa"}\n\ndata: {"text":"Paris"}\n\ndata: [DONE]\n\n',
    "crlf": b"data: a\r\n\r\ndata: b\r\n\r\n",
    "cr": b"data: a\r\rdata: b\r\r",
    "mixed ends": b"data: a\rdata: b\ndata: c\r\n\r\n",
    "cr then crlf": b"data: a\r\r\ndata: b\n\r\ndata: c\r\n\n",
    "byte order mark": b"\xef\xbb\xbfdata: a\n\n",
    "mark only at the start": b"data: a\n\n\xef\xbb\xbfdata: b\n\n",
    "comments": b": ping\n\n:\n: x\ndata: a\n: inside\ndata: b\n\n: after\n\n",
    "named": b"event: sglext_ids\ndata: 1\n\ndata: 2\n\n",
    "last name wins": b"event: a\nevent: b\ndata: x\n\n",
    "no space": b"data:x\n\ndata:  y\n\n",
    "no colon": b"data\n\ndata\ndata\n\n",
    "ignored fields": b"id: 7\nretry: 100\ndata: x\nunknown: y\n\n",
    "no data": b"event: a\n\nid: 7\n\ndata: x\n\n",
    "spare blank lines": b"\n\n\ndata: x\n\n\n\n\r\n\r\ndata: y\n\n",
    "not utf-8": b"event: \xff\ndata: \xff\xfe\n\n",
    "case matters": b"DATA: a\n\n data: b\n\ndata: c\n\n",
    "empty": b"",
}

wires = st.one_of(
    st.lists(
        st.sampled_from(
            [b"data", b"event", b": ", b":", b"\n", b"\r", b"\r\n", b"x", b" ", b"id: 1", b"\n\n"]
        )
    ).map(b"".join),
    st.lists(st.sampled_from([b"data: x\n\n", b"data: yy\n\n", b"data: z", b"\n", b": p\n\n"])).map(
        b"".join
    ),
)


def read(*pieces: bytes, max_event_bytes: int = 2**20) -> list[Event]:
    decoder = Decoder(max_event_bytes=max_event_bytes)
    return [event for piece in pieces for event in decoder.receive(piece)]


def split(wire: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    return [wire[a:b] for a, b in pairwise(places)]


def by_the_standard(wire: bytes) -> list[tuple[bytes, str]]:
    """Data and name of every event: the standard's steps, on the whole stream at once."""
    lines = re.split(rb"\r\n|\r|\n", wire.removeprefix(b"\xef\xbb\xbf"))
    events: list[tuple[bytes, str]] = []
    data: list[bytes] = []
    name = b""
    for line in lines[:-1]:
        if not line:
            if data:
                events.append((b"\n".join(data), name.decode("utf-8", "replace")))
            data, name = [], b""
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return events


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_golden_streams_read_as_the_standard_says(wire: bytes) -> None:
    # A CR that may still become a CRLF waits for its successor, so one more blank line flushes it.
    events = read(wire, b"\n")
    assert [(event.data, event.event) for event in events] == by_the_standard(wire + b"\n")


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_golden_streams_read_the_same_byte_by_byte(wire: bytes) -> None:
    assert read(*split(wire, list(range(len(wire))))) == read(wire)


@given(wires, st.lists(st.integers(0, 10_000), max_size=6))
def test_any_stream_reads_as_the_standard_says_however_it_is_cut(
    wire: bytes, cuts: list[int]
) -> None:
    events = read(*split(wire, cuts), b"\n")
    assert [(event.data, event.event) for event in events] == by_the_standard(wire + b"\n")


@given(wires, st.lists(st.integers(0, 10_000), max_size=6))
def test_raw_bytes_do_not_depend_on_the_cuts(wire: bytes, cuts: list[int]) -> None:
    assert read(*split(wire, cuts)) == read(wire)


@given(wires)
def test_raw_bytes_are_those_of_the_wire_in_order_and_read_as_the_same_event(wire: bytes) -> None:
    at = 0
    for event in read(wire):
        at = wire.index(event.raw, at) + len(event.raw)
        # The spare line feed completes a CR that could have been the first half of a CRLF.
        (again,) = read(event.raw, b"\n")
        assert (again.data, again.event) == (event.data, event.event)


def test_raw_holds_the_event_and_nothing_around_it() -> None:
    (event,) = read(b": ping\n\n: lead\nid: 4\n: inside\ndata: x\r\n\r\n: after\n\n")
    assert event.raw == b"id: 4\n: inside\ndata: x\r\n\r\n"


@given(
    st.lists(
        st.tuples(
            st.binary().map(lambda data: data.replace(b"\r", b"")),
            st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])),
        )
    )
)
def test_what_is_encoded_is_decoded_again(messages: list[tuple[bytes, str]]) -> None:
    wire = [encode(data, event=event) for data, event in messages]
    events = read(b"".join(wire))
    assert [(event.data, event.event) for event in events] == messages
    assert [event.raw for event in events] == wire


def test_the_end_marker_is_an_event() -> None:
    assert encode(b"[DONE]") == DONE


def test_a_comment_is_no_event() -> None:
    assert read(comment("ping"), DONE) == read(DONE)


@pytest.mark.parametrize("line_end", ["\r", "\n", "\r\n"])
def test_names_and_comments_are_one_line(line_end: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        encode(b"", event=f"a{line_end}b")
    with pytest.raises(ValueError, match="one line"):
        comment(f"a{line_end}b")


def test_a_carriage_return_cannot_be_carried() -> None:
    with pytest.raises(ValueError, match="carriage return"):
        encode(b"a\rb")


@pytest.mark.parametrize(
    "wire",
    [
        b"data: x",
        b"data: x\n",
        b"data: x\r\n\r",
        b"data: x\n\ndata: [DONE]\n",
        b"event: x\n",
        b"d",
        b"id: 3\n: comment\n",
    ],
)
def test_a_stream_that_ends_inside_an_event_is_the_workers_fault(wire: bytes) -> None:
    decoder = Decoder()
    decoder.receive(wire)
    with pytest.raises(WorkerError, match="in the middle of an event"):
        decoder.close()


@pytest.mark.parametrize(
    "wire",
    [b"", b"data: x\n\n", b"data: x\r\r", b"data: x\n\n: pi", b": a\n", b"\r", b"\xef\xbb", b"\n"],
)
def test_a_stream_may_end_between_events(wire: bytes) -> None:
    decoder = Decoder()
    decoder.receive(wire)
    decoder.close()


@given(wires, st.lists(st.integers(0, 10_000), max_size=6), st.integers(1, 20))
def test_the_limit_strikes_at_the_same_event_however_the_stream_is_cut(
    wire: bytes, cuts: list[int], limit: int
) -> None:
    assert limited(split(wire, cuts), limit) == limited([wire], limit)


def limited(pieces: list[bytes], limit: int) -> tuple[list[Event], bool]:
    decoder = Decoder(max_event_bytes=limit)
    events: list[Event] = []
    try:
        for piece in [*pieces, b""]:
            events += decoder.receive(piece)
    except WorkerError:
        return events, True
    return events, False


@pytest.mark.parametrize("line", [b"data: x\n\n", b": 345678\n", b"data: 89"])
def test_the_limit_counts_every_byte_of_an_event(line: bytes) -> None:
    size = len(line.rstrip(b"\n")) if line.startswith(b":") else len(line)
    assert limited([line], size)[1] is False
    assert limited([line], size - 1)[1] is True


def test_a_decoder_that_failed_stays_failed() -> None:
    decoder = Decoder(max_event_bytes=9)
    assert decoder.receive(b"data: x\n\ndata: too long\n\n") == read(b"data: x\n\n")
    for _ in range(2):
        with pytest.raises(WorkerError, match="more than 9 bytes"):
            decoder.receive(b"data: y\n\n")
    with pytest.raises(WorkerError, match="more than 9 bytes"):
        decoder.close()


def test_pings_hold_no_memory() -> None:
    decoder = Decoder(max_event_bytes=100)
    for _ in range(1000):
        assert decoder.receive(b": ping\n\n: and another\n") == []
    assert decoder.receive(DONE) == read(DONE)


BIG = 2**20


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * BIG, *[b"x"] * 2_000, b"\n\n"],
        [b"event: " + b"x" * BIG, *[b"x"] * 2_000],
        [b"x\r" * 2_000 + b"x" * BIG],
        [b"x\n" * 2_000 + b"x" * BIG],
        [b": x\n\n" * 2_000 + b"x" * BIG],
        [b"data: x\n\n" * 2_000 + b"data: " + b"x" * BIG, *[b"x"] * 2_000],
    ],
    ids=["byte after byte", "a name", "lines ended by CR", "by LF", "comments", "events"],
)
def test_nothing_is_searched_twice(pieces: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    # Each byte once for CR and once for LF; 2 000 searches through all of it are 2 GiB.
    searched = 0
    find = sse._find

    def counting(buffer: bytes | bytearray, byte: bytes, start: int) -> int:
        nonlocal searched
        found = find(buffer, byte, start)
        searched += found + 1 - start
        return found

    monkeypatch.setattr(sse, "_find", counting)
    read(*pieces, max_event_bytes=2 * BIG)
    assert 0 < searched <= 2 * sum(map(len, pieces)) + 10_000
