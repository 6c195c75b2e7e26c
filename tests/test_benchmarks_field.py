"""The large run in little: the C programs talk to each other, samples take turns, reports are told.

No time is asserted. Without a C compiler there is nothing to try, and the run itself says so.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from benchmarks.field.answered import Spent, answered_table, ask, exchange
from benchmarks.field.canned import (
    Body,
    Payload,
    conversation,
    ids_request,
    sampled,
    script,
    spoken,
    text_request,
    write_bodies,
)
from benchmarks.field.loads import Load, Loaded, run_load
from benchmarks.field.native import NoCompiler, build, compiler
from benchmarks.field.outcome import GOALS, YARDSTICKS, Goal, Outcome, goals_table, ratios_table
from benchmarks.field.parts import FILES, REST, parts_of, within
from benchmarks.field.peers import PEERS, Absent, Peer, Place
from benchmarks.field.processor import (
    Pins,
    cpu_seconds,
    family,
    noise,
    parse_stat,
    pins,
    resident_bytes,
    touch_memory,
    usage,
)
from benchmarks.field.profiling import Profile, flat, shares_table
from benchmarks.field.results import markdown_table, write_results
from benchmarks.field.running import Running, canned_workers, start_all
from benchmarks.field.sampling import Row, Sample, Sampler, Series, order, requests_for
from benchmarks.field.scene import QUICK, Scene
from benchmarks.field.served_cells import SERVED, row_figures, served_table
from benchmarks.processes import Client
from benchmarks.report import Table
from benchmarks.run import CELLS, measure_cell

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
ANYWHERE = Pins(router=None, others=None)
ANSWERS = (Payload(tokens=3), Payload(tokens=40), Payload(tokens=6, events=3))
PACED = Payload(tokens=8, events=4, interval_us=1000)


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    """A canned worker's URL."""
    with canned_workers(script([*ANSWERS, PACED]), 1, ANYWHERE) as (url,):
        yield url


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def loaded(**figures: float | str) -> Loaded:
    """What the generator says, as far as a test cares."""
    blank = dict.fromkeys(Loaded.__struct_fields__, 0) | {"seconds": 1.0, "first_error": ""}
    return msgspec.convert(blank | figures, Loaded, strict=False)


def series(*costs: float, problem: str = "") -> Series:
    return Series(
        samples=[Sample(cpu_us=cost, loaded=loaded(answered=10)) for cost in costs],
        problem=problem,
    )


@needs_compiler
class TestTheWorker:
    def test_answers_with_as_many_tokens_as_were_asked_for(self, worker: str) -> None:
        client = Client(worker)
        answer = client.post("/generate", msgspec.Raw(ids_request(20, 40).data))
        client.close()
        ids, text = sampled(40)
        assert (answer["output_ids"], answer["text"]) == (list(ids), text)
        told = [token for _, token, _ in answer["meta_info"]["output_token_logprobs"]]
        assert told == list(ids)

    def test_gives_back_the_id_of_the_request_or_counts(self, worker: str) -> None:
        client = Client(worker)
        named = {"rid": "0123456789abcdef" * 2, "sampling_params": {"max_new_tokens": 3}}
        unnamed = {"sampling_params": {"max_new_tokens": 3}}
        given = [
            client.post("/generate", body)["meta_info"]["id"] for body in (named, *[unnamed] * 2)
        ]
        client.close()
        assert given[0] == "0123456789abcdef" * 2
        assert given[1] != given[2]

    def test_streams_events_that_add_up(self, worker: str) -> None:
        client = Client(worker)
        stream = client.post("/generate", msgspec.Raw(ids_request(20, 6, stream=True).data))
        client.close()
        *events, end = stream.split(b"\n\n")[:-1]
        said = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]
        assert end == b"data: [DONE]"
        assert [token for one in said for token in one["output_ids"]] == list(sampled(6)[0])
        assert "".join(one["text"] for one in said) == sampled(6)[1]

    def test_knows_what_routers_ask_of_a_worker_and_nothing_else(self, worker: str) -> None:
        client = Client(worker)
        assert client.get("/get_model_info")["weight_version"] == "1"
        assert client.get("/v1/models")["data"][0]["id"] == "canned"
        with pytest.raises(RuntimeError, match="404"):
            client.get("/elsewhere")
        with pytest.raises(RuntimeError, match="404"):
            client.post("/generate", {"sampling_params": {"max_new_tokens": 5}})
        client.close()

    def test_takes_a_body_in_chunks(self, worker: str) -> None:
        body = ids_request(20, 3).data
        head = b"POST /generate HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        chunks = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port_of(worker))) as connection:
            connection.sendall(head + chunks)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


@needs_compiler
class TestTheGenerator:
    def load(self, worker: str, folder: Path, bodies: list[Body], load: Load) -> Loaded:
        write_bodies(folder / "bodies", bodies)
        load = replace(load, bodies=folder / "bodies")
        return run_load(port_of(worker), load, ANYWHERE)[0]

    def test_counts_answers_and_bytes(self, worker: str, tmp_path: Path) -> None:
        load = Load(requests=50, connections=7, marker="finish_reason")
        found = self.load(worker, tmp_path, [ids_request(20, 40)], load)
        assert (found.answered, found.errors, found.reconnects) == (50, 0, 0)
        assert found.bytes > 50 * 40 * 20
        assert 0 < found.first_byte_p50_ms <= found.p50_ms <= found.p99_ms

    @pytest.mark.parametrize("payload", [ANSWERS[2], PACED])
    def test_counts_events(self, worker: str, tmp_path: Path, payload: Payload) -> None:
        body = ids_request(20, payload.tokens, stream=True)
        events = payload.events + 1
        load = Load(requests=6, connections=3, events=events, interval_us=payload.interval_us)
        found = self.load(worker, tmp_path, [body], load)
        assert (found.errors, found.events) == (0, 6 * events)

    def test_sends_all_at_a_rate(self, worker: str, tmp_path: Path) -> None:
        load = Load(requests=20, connections=2, rate=1000.0)
        found = self.load(worker, tmp_path, [ids_request(20, 3)], load)
        assert (found.answered, found.errors) == (20, 0)

    @pytest.mark.parametrize(
        ("answer", "load", "words"),
        [
            (5, Load(requests=3), "refused, status 404: {}"),
            (3, Load(requests=3, marker="nowhere"), "another answer, status 200"),
            (3, Load(requests=3, events=2), "another number of events, status 200"),
        ],
    )
    def test_says_what_was_wrong(
        self, worker: str, tmp_path: Path, answer: int, load: Load, words: str
    ) -> None:
        found = self.load(worker, tmp_path, [ids_request(20, answer)], load)
        assert found.errors == 3
        assert found.first_error.startswith(words)

    def test_gives_up_on_what_does_not_come_in_time(self, worker: str, tmp_path: Path) -> None:
        load = Load(requests=3, connections=1, rate=1.0, limit_s=0.05)
        found = self.load(worker, tmp_path, [ids_request(20, 3)], load)
        assert (found.answered, found.errors) == (1, 2)
        assert found.first_error.startswith("not answered in time")

    def test_says_where_nobody_listens(self) -> None:
        with pytest.raises(RuntimeError, match="cannot connect"):
            run_load(1, Load(requests=1, connections=1), ANYWHERE)

    def test_sends_every_conversation_in_order_under_a_number_of_its_own(
        self, tmp_path: Path
    ) -> None:
        bodies = conversation(2, 50, (3, 4))
        write_bodies(tmp_path / "bodies", bodies)
        load = Load(
            requests=4, connections=1, turns=2, first=7, sessions=2, bodies=tmp_path / "bodies"
        )
        seen = received(load)
        texts = [json.loads(body)["text"] for _, body in seen]
        assert [text[:15] for text in texts] == ["0,0,0,0,0,0,0,7"] * 2 + ["0,0,0,0,0,0,0,8"] * 2
        assert texts[1].startswith(texts[0])
        assert spoken(bodies[:1], (3,)) in texts[1].replace("0,7 ", "0,0 ", 1)
        assert ["s00000001" in head for head, _ in seen] == [True, True, False, False]


def received(load: Load) -> list[tuple[str, bytes]]:
    """What a server gets of a load: head and body of every request."""
    seen: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            seen.append((str(self.headers), self.rfile.read(length)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        run_load(server.server_port, load, ANYWHERE)
        server.shutdown()
        thread.join()
    return seen


def test_two_answers_that_are_asked_for_in_the_same_words_are_refused() -> None:
    with pytest.raises(ValueError, match="two answers of 6 tokens"):
        script([Payload(tokens=6, events=3), Payload(tokens=6, events=2)])


@pytest.mark.parametrize("body", [ids_request(30, 3), text_request(100, 3)])
def test_a_request_says_where_its_number_stands(body: Body) -> None:
    assert body.data[body.number_at :].startswith(b"0,1,2,3,4,5,6,7")
    assert json.loads(body.data)["return_logprob"] is True


def test_without_a_compiler_the_way_to_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoCompiler, match="apt-get install gcc"):
        build("load", cache=tmp_path / "cache")


def test_processor_time_is_read_from_the_line_that_the_system_writes() -> None:
    line = "7 (a (b) c) S 3 7 7 0 -1 4194560 5 6 7 8 250 50 30 20 20 0 1 0 99 1 1"
    stat = parse_stat(line)
    ticks = os.sysconf("SC_CLK_TCK")
    assert (stat.parent, stat.cpu_s, stat.ended_children_s) == (3, 300 / ticks, 50 / ticks)


def test_a_family_counts_whole() -> None:
    """The clock of a process is the account that its stat line shows in ticks."""
    code = "import sys, time\nwhile time.process_time() < 0.05: pass\nprint(); sys.stdin.read()"
    words = [sys.executable, "-c", code]
    parent = f"import subprocess, sys; subprocess.run({words!r})"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        members = family(process.pid)
        told = [parse_stat(Path(f"/proc/{pid}/stat").read_text()) for pid in members]
        spent = cpu_seconds(process.pid)
        resident = resident_bytes(process.pid)
        process.communicate(b"")
    assert len(members) == 2
    assert spent >= 0.05
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert spent == pytest.approx(sum(stat.cpu_s for stat in told), abs=2 * len(told) * tick)
    assert resident > 2**20


def test_router_and_the_rest_have_a_cpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    assert pins() == Pins(router=frozenset({3}), others=frozenset({5}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert "times are of no use" in pins().words


def test_a_busy_machine_is_not_called_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 0.0, 0.0))
    assert "load average 1.25" in (noise() or "")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    assert noise() is None


def test_samples_take_turns_and_every_round_begins_with_another() -> None:
    assert "".join(order(4, "ABC")) == "ABCBCACABABC"
    assert list(order(2, [])) == []


def test_a_sample_has_whole_conversations_and_work_for_every_connection() -> None:
    talk = Row(name="x", bodies=(), connections=32, turns=16)
    assert requests_for(talk, 100.0, 0.1) == 32 * 16
    assert requests_for(talk, 10_000.0, 1.0) % 16 == 0
    small = Row(name="x", bodies=(), connections=64)
    assert requests_for(small, 1000.0, 2.0) == 2000
    assert requests_for(small, 1.0, 1.0) == 128
    paced = Row(name="x", bodies=(), connections=64, rate=200.0)
    assert requests_for(paced, 10_000.0, 0.5) == 100
    assert requests_for(Row(name="x", bodies=(), requests=5), 10_000.0, 9.0) == 5


def pretended(name: str, port: int) -> Running:
    peer = Peer(name=name, about="", command=lambda _: [])
    return Running(peer=peer, port=port, pid=os.getpid(), command=())


@needs_compiler
def test_peers_are_sampled_as_often_as_each_other(worker: str, tmp_path: Path) -> None:
    sampler = Sampler(ANYWHERE, tmp_path, rounds=3, sample_s=60.0)  # none is too slow for that
    row = Row(name="x", bodies=(ids_request(20, 3),), connections=2, requests=4)
    peers = [pretended("one", port_of(worker)), pretended("two", port_of(worker))]
    found = sampler.series(row, [*peers, pretended("none", 1)])
    assert [len(found[name].samples) for name in ("one", "two", "none")] == [3, 3, 0]
    assert "cannot connect" in found["none"].problem
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_peer_that_fails_has_no_cost(worker: str, tmp_path: Path) -> None:
    sampler = Sampler(ANYWHERE, tmp_path, rounds=1, sample_s=0.001)
    row = Row(name="x", bodies=(ids_request(20, 5),), connections=2)
    found = sampler.series(row, [pretended("one", port_of(worker))])["one"]
    assert found.samples == []
    assert "2 failed: refused, status 404" in found.problem


def place(folder: Path, venv: Path | None) -> Place:
    return Place(port=1, spare_port=2, workers=("http://127.0.0.1:3",), folder=folder, venv=venv)


@pytest.mark.parametrize("name", ["sglang-router", "smg-cache", "fastapi"])
def test_a_peer_that_is_not_installed_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(Absent, match="--peer-venv"):
        PEERS[name].command(place(tmp_path, None))
    with pytest.raises(Absent, match="does not exist"):
        PEERS[name].command(place(tmp_path, tmp_path))


def test_a_peer_that_ends_at_once_is_absent_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such thing'); raise SystemExit(1)"]
    peer = Peer(name="broken", about="", command=lambda _: command)
    with start_all([peer], place(tmp_path, None), ANYWHERE) as fleet:
        assert fleet.running == ()
    assert fleet.absent == {"broken": "ended at once: no such thing"}


def test_a_table_compares_with_this_projects_own() -> None:
    row = Row(name="x", bodies=(Body.of({}),))
    found = {
        "fast": series(10.0, 30.0, 20.0),
        "slow": series(60.0),
        "broken": series(problem="why"),
    }
    table = served_table("Small", row, found)
    assert table.columns[:4] == ("peer", "µs/request", "least", "most")
    assert table.rows[0] == ("fast", 20.0, 10.0, 30.0, 10.0, 0.0, 0.0, 1.0, "")
    assert table.rows[1][-2:] == (3.0, "")
    assert table.rows[2] == ("broken", *(None,) * 7, "why")


def test_first_bytes_are_told_as_time_after_the_workers_own() -> None:
    found = {
        "fast": Series(samples=[Sample(cpu_us=1.0, loaded=loaded(first_byte_p50_ms=0.75))]),
        "direct": Series(samples=[Sample(cpu_us=0.0, loaded=loaded(first_byte_p50_ms=0.25))]),
    }
    assert row_figures("stream/paced", found)["stream/paced/fast/first_byte_late_ms"] == 0.5


def test_goals_are_limits_or_ratios_and_say_whether_they_are_met() -> None:
    at_most = Goal(words="a", figure="x", limit=4)
    ratio = Goal(words="b", figure="x", over="y", limit=2, at_least=True)
    assert (at_most.reached({"x": 3.0}), at_most.reached({})) == (3.0, None)
    assert (ratio.reached({"x": 3.0, "y": 1.0}), ratio.reached({"x": 3.0})) == (3.0, None)
    figures = {"small/64/fast/cpu_us": 90.0, "small/64/sglang-router/cpu_us": 180.0}
    rows = {row[0]: row for row in goals_table(figures).rows}
    assert rows["small request, µs"] == ("small request, µs", "≤ 45", 90.0, 2.0, "no")
    assert rows["small: sglang-router / fast"][1:] == ("≥ 2", 2.0, 1.0, "yes")
    assert rows["32k ids in, captured, µs"][-1] == "-"


def test_a_goal_in_microseconds_is_told_in_multiples_of_other_routers() -> None:
    figures = {
        "small/64/fast/cpu_us": 300.0,
        "small/64/nginx/cpu_us": 30.0,
        "small/64/sglang-router/cpu_us": 120.0,
    }
    rows = {row[0]: row[1:] for row in ratios_table(figures).rows}
    assert rows["small request"] == (3.0, 10.0, 0.5, 2.5, 150.0, 45)
    assert rows["32k ids in, passed through"][1] is None


def test_every_goal_names_a_figure_of_a_cell() -> None:
    """A goal that is never measured is never missed."""
    cells = {
        figure.split("/")[0] for goal in GOALS for figure in (goal.figure, goal.over or "small")
    }
    assert cells <= set(CELLS)
    assert {one.figure for one in YARDSTICKS} <= {goal.figure for goal in GOALS}
    for goal in GOALS:
        cell, row, *rest = goal.figure.split("/")
        if cell in SERVED:
            assert row in {one.name for one in SERVED[cell].rows()}
            assert rest[0] in PEERS


def test_a_report_has_every_table_and_every_figure(tmp_path: Path) -> None:
    table = Table(title="Costs", columns=("peer", "µs", ""), rows=(("a|b", 1.5, ""),), notes=("n",))
    outcome = Outcome(tables=(table,), figures={"small/x": 1.5}, absent={"nginx": "not there"})
    machine = {"date": "today", "versions": {"trio": "1"}}
    as_json, as_text = write_results(tmp_path / "out", machine, {"small": outcome})
    told = json.loads(as_json.read_text())
    assert told["figures"] == {"small/x": 1.5}
    assert told["cells"]["small"]["tables"][0]["rows"] == [["a|b", 1.5, ""]]
    text = as_text.read_text()
    assert "| peer | µs |\n| --- | --- |\n| a/b | 1.500 |\n" in text
    assert "* absent: nginx not there" in text
    assert "* versions: trio 1" in text
    assert markdown_table(goals_table({})) in text
    assert markdown_table(ratios_table({})) in text


def test_a_profile_lists_functions_by_their_own_share() -> None:
    stacks = "run (a.py:1);read (b.py:7) 3\nrun (a.py:2);read (b.py:9);parse (c.py:1) 1\n"
    assert flat(stacks).splitlines() == [
        "4 samples",
        "",
        "  self    all  function",
        " 75.0% 100.0%  read (b.py)",
        " 25.0%  25.0%  parse (c.py)",
        "",
        "  0.0% 100.0%  run (a.py)",
        " 75.0% 100.0%  read (b.py)",
        " 25.0%  25.0%  parse (c.py)",
    ]


def test_a_sample_counts_for_the_innermost_part_that_has_a_name() -> None:
    task = "run (trio/_core/_run.py:1);relay (slime_trio/relay.py:2)"
    stacks = [
        f"{task};find (slime_core/history.py:3);shared (slime_core/radix.py:4) 3",
        f"{task};send_now (slime_trio/byte_stream.py:5);send (libc.so.6) 2",
        f"{task};find (slime_core/history.py:3);gc_collect_main (libpython3.11.so.1.0) 1",
        f"{task};loads (json/__init__.py:6) 1",
        "start (threading.py:7) 1",
        "work (trio/_core/_thread_cache.py:8);PyThread_acquire_lock_timed (x.so);0x1 (libc.so.6) 9",
        f"{task};epoll_wait (libc.so.6) 9",
    ]
    assert within("\n".join(stacks))["look-up of the prompt"] == {"shared": 0.375}
    assert parts_of("\n".join(stacks)) == {
        "look-up of the prompt": 0.375,
        "system calls: send": 0.25,
        "garbage collector": 0.125,
        "relay: a request from its body to its answer": 0.125,
        REST: 0.125,
    }


def test_every_file_of_a_part_exists() -> None:
    """A part whose files were renamed would lose its share to whoever calls it."""
    places = [place for some in FILES.values() for place in some if place.startswith("slime_")]
    source = Path(__file__).parent.parent / "src"
    assert [place for place in places if not (source / place).exists()] == []


def test_shares_are_told_beside_each_other_with_what_a_request_costs() -> None:
    def profile(row: str, peer: str, unit: str, **parts: float) -> Profile:
        return Profile(
            cell="stream",
            row=row,
            peer=peer,
            unit=unit,
            cpu_us=1234.5,
            kernel=0.25,
            faults=1.5,
            parts={name.replace("_", " "): share for name, share in parts.items()},
            functions={},
        )

    some = [
        profile("burst", "fast", "request", garbage_collector=0.125),
        profile("paced", "fast", "event", garbage_collector=0.0001),
    ]
    table = shares_table("Shares", some)
    assert table.columns == ("%", "burst, fast", "paced, fast")
    assert table.rows == (
        ("garbage collector", "12.5", ""),
        ("µs by itself", "1,234", "1,234"),
        ("of that in the kernel", "25.0", "25.0"),
        ("page faults for each", "1.5", "1.5"),
    )


@needs_compiler
def test_an_answer_is_complete_with_its_last_byte(worker: str) -> None:
    with socket.create_connection(("127.0.0.1", port_of(worker))) as connection:
        for number in range(2):
            exchange(connection, ids_request(20, 40).numbered(number))
        with pytest.raises(RuntimeError, match="404"):
            exchange(connection, ids_request(20, 5).data)


def test_a_router_that_was_stopped_to_read_its_clock_goes_on() -> None:
    code = "import sys\nfor line in sys.stdin: print(sum(range(10**6)), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        reader, writer = process.stdout, process.stdin

        def send() -> None:
            writer.write(b"\n")
            writer.flush()
            reader.readline()

        spent = ask(replace(pretended("one", 1), pid=process.pid), [send] * 3)
        send()
        process.communicate()
    assert 0 < spent.before_us <= spent.whole_us


def test_what_comes_before_an_answer_is_told_as_a_share_and_beside_ours() -> None:
    seen = {
        "fast": [Spent(before_us=50.0, whole_us=200.0)],
        "slow": [Spent(before_us=100.0, whole_us=100.0)],
    }
    rows = answered_table("large", seen).rows
    assert rows == (("fast", 50.0, 200.0, 0.25, 1.0), ("slow", 100.0, 100.0, 1.0, 2.0))


def test_memory_is_touched_in_whole_blocks() -> None:
    before = usage(os.getpid())
    assert touch_memory(3 * 2**20 + 5) == 3 * 2**20
    assert (usage(os.getpid()) - before).faults > 0


def test_a_process_says_what_it_used() -> None:
    before = usage(os.getpid())
    with mmap.mmap(-1, 2**20) as pages:
        pages.write(b"x" * 2**20)
    spent = usage(os.getpid()) - before
    assert spent.faults > 0
    assert spent.user_s >= 0


@needs_compiler
def test_a_cell_measures_the_router_itself(tmp_path: Path) -> None:
    """The one test with real servers: this project's router, and a peer that is not there."""
    scene = Scene(
        pins=ANYWHERE,
        folder=tmp_path,
        venv=None,
        peers=(PEERS["hypercorn"], PEERS["smg"]),
        scale=replace(QUICK, rounds=1),
    )
    outcome = measure_cell(scene, "small")
    (table,) = outcome.tables
    assert [row[0] for row in table.rows] == ["hypercorn"]
    assert outcome.figures["small/64/hypercorn/cpu_us"] > 0
    assert any("not captured: 0" in note for note in table.notes)
    assert list(outcome.absent) == ["smg"]


def test_a_cell_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Scene) -> Outcome:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("benchmarks.run.SCALES", {"start": broken})
    scene = Scene(pins=ANYWHERE, folder=tmp_path, venv=None, peers=(), scale=QUICK)
    assert measure_cell(scene, "start").absent == {"start": "out of luck"}
