"""A worker's times, worked out by hand. All rates are powers of two, so the times are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from slime_core.engine import PauseMode
from slime_core.simulation import WorkerSpeed
from slime_core.simulation.agenda import Agenda
from slime_core.simulation.prefix_cache import Passage
from slime_core.simulation.worker import Attempt, Line, Worker
from slime_core.simulation.workload import Call, Session


def _speed(**changed: object) -> WorkerSpeed:
    """64 prompt tokens a second and 8 sampled ones."""
    fields = {"prefill_tokens_per_s": 64.0, "s_per_token": 1 / 8} | changed
    return WorkerSpeed(**fields)  # type: ignore[arg-type]


@dataclass
class _Bench:
    """One worker, and when its attempts had their first token and their end."""

    speed: WorkerSpeed = field(default_factory=_speed)
    encodes: bool = False
    agenda: Agenda = field(default_factory=Agenda)
    ends: dict[int, tuple[float, float]] = field(default_factory=dict)
    lost: dict[int, tuple[float, int]] = field(default_factory=dict)
    passages: int = 0
    attempts: int = 0

    def __post_init__(self) -> None:
        self.worker = Worker(self.agenda, self.speed, encodes=self.encodes, ended=self._ended)

    def _ended(self, attempt: Attempt) -> None:
        if attempt.lost:
            self.lost[attempt.number] = (self.agenda.now, attempt.sampled)
        else:
            self.ends[attempt.number] = (attempt.first_token_at, self.agenda.now)

    def text(self, tokens: int, after: Passage | None = None) -> Passage:
        self.passages += 1
        return Passage(self.passages, after, tokens)

    def call(self, prompt: Passage, answer_tokens: int) -> Call:
        return Call(
            session=Session("s"),
            turn=1,
            prompt=prompt,
            answer=self.text(answer_tokens, prompt),
            answer_tokens=answer_tokens,
        )

    def ask(self, at_s: float, prompt: int | Passage, answer_tokens: int) -> Call:
        """Attempts are numbered from 1 in the order in which they are asked for."""
        text = self.text(prompt) if isinstance(prompt, int) else prompt
        call = self.call(text, answer_tokens)
        self.attempts += 1
        attempt = Attempt(self.attempts, call)
        self.agenda.at(at_s, lambda: self.worker.take(attempt))
        return call

    def at(self, at_s: float, action: Callable[[], object]) -> None:
        self.agenda.at(at_s, action)

    def run(self) -> dict[int, tuple[float, float]]:
        while self.agenda.step():
            pass
        return self.ends


def test_a_prompt_is_computed_and_then_each_token_takes_its_time() -> None:
    bench = _Bench()
    bench.ask(1.0, 32, 4)
    assert bench.run() == {1: (1.5 + 1 / 8, 2.0)}


def test_an_answer_of_one_token_ends_with_its_first() -> None:
    bench = _Bench()
    bench.ask(0.0, 64, 1)
    assert bench.run() == {1: (1.125, 1.125)}


def test_prompts_are_computed_in_order_and_batches_decode_side_by_side() -> None:
    bench = _Bench()
    bench.ask(0.0, 64, 8)
    bench.ask(0.25, 32, 8)
    assert bench.run() == {1: (1.125, 2.0), 2: (1.625, 2.5)}


def test_decoding_waits_for_prefill_where_the_engine_does_not_mix_them() -> None:
    bench = _Bench(_speed(prefill_stops_decode=True))
    bench.ask(0.0, 64, 8)
    bench.ask(0.25, 32, 8)
    assert bench.run() == {1: (1.625, 2.5), 2: (1.625, 2.5)}


def test_a_larger_batch_is_slower_for_each_of_its_members() -> None:
    bench = _Bench(_speed(prefill_tokens_per_s=0.0, s_per_token_per_other=1 / 8))
    bench.ask(0.0, 1, 4)
    bench.ask(0.0, 1, 8)
    # Four tokens at a quarter of a second each; then four more alone at an eighth.
    assert bench.run() == {1: (0.25, 1.0), 2: (0.25, 1.5)}


def test_who_finds_the_batch_full_waits_for_a_place() -> None:
    bench = _Bench(_speed(prefill_tokens_per_s=0.0, max_running=2))
    for answer_tokens in (8, 4, 2):
        bench.ask(0.0, 1, answer_tokens)
    assert bench.run() == {1: (0.125, 1.0), 2: (0.125, 0.5), 3: (0.625, 0.75)}


def test_what_the_prefix_cache_holds_is_not_computed_again() -> None:
    bench = _Bench()
    first = bench.ask(0.0, 64, 9)
    bench.ask(4.0, bench.text(24, first.answer), 8)
    bench.run()
    # 64 + 8 of the answer's 9 tokens are held: 25 of 97 are computed.
    assert bench.ends[2] == (4 + 25 / 64 + 1 / 8, 4 + 25 / 64 + 1)
    assert (bench.worker.books.prompt_tokens, bench.worker.books.cached_tokens) == (161, 72)


def test_a_prompt_that_is_held_still_costs_its_last_token() -> None:
    bench = _Bench()
    prompt = bench.text(64)
    bench.ask(0.0, prompt, 8)
    bench.ask(0.0, prompt, 8)
    bench.run()
    assert bench.ends[2] == (1 + 1 / 64 + 1 / 8, 1 + 1 / 64 + 1)


def test_text_is_encoded_before_it_enters_the_queue_one_after_the_other() -> None:
    bench = _Bench(_speed(encode_tokens_per_s=128.0), encodes=True)
    bench.ask(0.0, 64, 8)
    bench.ask(0.0, 64, 8)
    assert bench.run() == {1: (1.625, 2.5), 2: (2.625, 3.5)}


def test_ids_need_no_encoding() -> None:
    bench = _Bench(_speed(encode_tokens_per_s=128.0), encodes=False)
    bench.ask(0.0, 64, 8)
    assert bench.run() == {1: (1.125, 2.0)}


def test_a_crash_loses_what_runs_and_waits_and_says_what_was_sampled() -> None:
    bench = _Bench(_speed(max_running=2))
    for _ in range(3):
        bench.ask(0.0, 32, 16)
    bench.ask(2.0, 32, 1)
    bench.at(1.3, bench.worker.crash)
    bench.at(3.0, bench.worker.repair)
    bench.ask(3.0, 32, 1)
    bench.run()
    # Decoding began at 0.5 and 1.0: six tokens and two of an eighth each, the third waited.
    assert bench.lost == {1: (1.3, 6), 2: (1.3, 2), 3: (1.3, 0), 4: (2.0, 0)}
    assert bench.ends == {5: (3.625, 3.625)}
    books = bench.worker.books
    assert (books.lost_tokens, books.failures, books.attempts) == (8, 1, 4)


def test_a_crash_forgets_the_prefix_cache() -> None:
    bench = _Bench()
    prompt = bench.text(64)
    bench.ask(0.0, prompt, 1)
    bench.at(2.0, bench.worker.crash)
    bench.at(2.0, bench.worker.repair)
    bench.ask(3.0, prompt, 1)
    assert bench.run()[2] == (4.125, 4.125)


def test_text_that_is_being_encoded_is_lost_with_its_worker() -> None:
    bench = _Bench(_speed(encode_tokens_per_s=64.0), encodes=True)
    bench.ask(0.0, 64, 1)
    bench.at(0.5, bench.worker.crash)
    bench.at(0.5, bench.worker.repair)
    bench.ask(0.5, 64, 1)
    bench.run()
    assert (bench.lost, bench.ends) == ({1: (0.5, 0)}, {2: (2.625, 2.625)})


@pytest.mark.parametrize("pause_at", [0.25, 0.5, 0.75, 1.0])
def test_a_pause_in_place_delays_everything_by_its_length(pause_at: float) -> None:
    bench = _Bench()
    bench.ask(0.0, 32, 8)
    bench.ask(0.0, 32, 8)
    bench.at(pause_at, lambda: bench.worker.pause(PauseMode.IN_PLACE))
    bench.at(pause_at + 4, bench.worker.resume)
    bench.run()
    assert {number: end for number, (_, end) in bench.ends.items()} == {1: 5.5, 2: 6.0}
    assert bench.worker.books.busy_s == 2.0


def test_who_comes_while_it_is_paused_waits_at_the_gate() -> None:
    bench = _Bench()
    bench.at(0.0, lambda: bench.worker.pause(PauseMode.IN_PLACE))
    bench.ask(1.0, 32, 8)
    bench.at(2.0, bench.worker.resume)
    assert bench.run() == {1: (2.625, 3.5)}


def test_an_aborting_pause_throws_away_what_runs_and_serves_what_comes_after() -> None:
    bench = _Bench()
    bench.ask(0.0, 64, 16)
    bench.at(1.5, lambda: bench.worker.pause(PauseMode.ABORT))
    bench.ask(1.75, 64, 1)
    bench.at(2.0, bench.worker.resume)
    bench.run()
    assert (bench.lost, bench.ends) == ({1: (1.5, 4)}, {2: (3.125, 3.125)})


def test_retraction_keeps_what_was_sampled_and_computes_it_again_in_the_same_order() -> None:
    bench = _Bench()
    bench.ask(0.0, 64, 16)
    bench.ask(0.0, 32, 16)
    bench.ask(1.25, 16, 1)
    bench.at(1.5, lambda: bench.worker.pause(PauseMode.RETRACT))
    bench.at(2.0, bench.worker.resume)
    bench.run()
    # At 1.5 the first had 4 tokens and the second prompt was just done; the third waited.
    first, second, third = 2 + 68 / 64, 2 + 100 / 64, 2 + 116 / 64
    assert bench.ends == {
        1: (1.125, first + 12 / 8),
        2: (second + 1 / 8, second + 16 / 8),
        3: (third + 1 / 8, third + 1 / 8),
    }
    assert bench.lost == {}
    assert bench.worker.books.prompt_tokens == 112


def test_the_books_tell_seconds_and_tokens() -> None:
    bench = _Bench()
    bench.ask(1.0, 64, 8)
    bench.ask(8.0, 64, 8)
    bench.run()
    books = bench.worker.books
    assert (books.busy_s, books.prefill_s, books.output_tokens) == (4.0, 2.0, 16)


def test_a_line_works_off_one_piece_after_the_other() -> None:
    line = Line(10.0)
    assert [line.done_at(now, units) for now, units in [(0, 5), (0.25, 5), (4, 10)]] == [0.5, 1, 5]
    assert Line(0.0).done_at(3.0, 1e9) == 3.0


def test_tokens_that_take_less_than_the_clock_can_tell_still_come() -> None:
    bench = _Bench(_speed(prefill_tokens_per_s=0.0, s_per_token=1e-30))
    bench.ask(1.0, 64, 8)
    bench.ask(1.0, 64, 4)
    assert bench.run() == {1: (1.0, 1.0), 2: (1.0, 1.0)}
