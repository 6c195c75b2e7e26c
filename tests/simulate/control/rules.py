"""The rules of the control plane: what the router says was done was done, and nothing else was.

As :mod:`tests.simulate.oracles`, of whose list they are a part.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulate.cases import Case, rule
from tests.simulate.control.director import results_of
from tests.simulate.control.records import Asked, Served
from tests.simulate.story import Ending, Exchange, Got

__all__: list[str] = []

_APPLIED = 400
"""Weights were updated, and only the cache could not be emptied."""


@rule("9 errands")
def what_was_seen_at_once(case: Case) -> Iterator[str]:
    """What whoever asked found wrong."""
    for asked in case.story.asked:
        yield from (f"{_named(asked)}: {problem}" for problem in asked.problems)


def _named(asked: Asked) -> str:
    return f"{asked.method} {asked.path} ({asked.number})"


@rule("9 fan-outs")
def results_are_true(case: Case) -> Iterator[str]:
    """A worker that is among the results did what was asked; the numbers and the status fit."""
    for asked in case.story.asked:
        answer = asked.answer
        told = list(results_of(asked))
        if told:
            case.note("fan-out told")
        for url, status in told:
            if not any(_fits(one, asked, url, status) for one in case.story.served):
                yield f"{_named(asked)}: {url} is said to have answered {status}, and did nothing"
        if isinstance(answer, dict) and "results" in answer:
            yield from _number_problems(asked, answer)


def _fits(one: Served, asked: Asked, url: str, status: int) -> bool:
    """Whether this is what the worker did of it."""
    mine = one.errand == asked.number or (one.errand is None and "abort" in one.path)
    when = one.done_at is not None and one.at > asked.at
    return mine and when and one.worker == url and one.status in (None, status)


def _number_problems(asked: Asked, answer: dict[str, object]) -> Iterator[str]:
    results, failed = answer["results"], answer["failed"]
    assert isinstance(results, dict)
    assert isinstance(failed, list)
    total = len(results) + len(failed)
    if (answer["succeeded"], answer["total"]) != (len(results), total):
        yield f"{_named(asked)}: {answer['succeeded']} of {answer['total']} are {total}"
    if asked.path.startswith("/abort"):
        right = 200
    else:
        right = 200 if not failed else 207 if results else 502
    if asked.status != right or answer["success"] is not (not failed):
        yield f"{_named(asked)}: {len(failed)} of {total} failed, and it says {asked.status}"


@rule("9 labels")
def labels_keep_what_is_in_flight(case: Case) -> Iterator[str]:
    """Nothing is aborted by a new label unless that was asked for."""
    wishes = {asked.number: (asked.body or {}).get("abort_all_requests") is True
              for asked in case.story.asked if "update_weight_version" in asked.path}  # fmt: skip
    for one in case.story.served:
        if one.path == "/update_weight_version" and one.errand in wishes:
            case.note("label")
            if one.body.get("abort_all_requests", True) is not wishes[one.errand]:
                yield f"{one.worker} was told {one.body}, though abort was {wishes[one.errand]}"


@rule("9 aborts")
def what_waits_ends_as_aborted(case: Case) -> Iterator[str]:
    """Who was to be aborted and got no worker ends with the finish of an abort; nobody else."""
    waited = {call for asked in case.story.asked for call in asked.waited}
    sampled = {one.exchange for one in case.story.sampled}
    for exchange in case.story.exchanges:
        if exchange.ending is not Ending.COMPLETE or exchange.number in sampled:
            continue
        is_aborted = [_is_abort(got) for got in exchange.samples]
        if waited.issuperset(exchange.calls) and exchange.calls:
            case.note("aborted in the router")
            if not all(is_aborted):
                yield f"exchange {exchange.number} was to be aborted, and ended otherwise"
        elif any(is_aborted) and not _has_cause(case, exchange):
            yield f"exchange {exchange.number} was aborted in the router, which nobody asked for"


def _is_abort(got: Got) -> bool:
    return (got.finish or {}).get("type") == "abort"


def _has_cause(case: Case, exchange: Exchange) -> bool:
    """An abort that was asked for meanwhile, or a worker that aborted something."""
    end = exchange.last_byte_at
    asked = any(
        (end is None or one.at < end) and (one.ended_at or exchange.asked_at) >= exchange.asked_at
        for one in case.story.asked
        if _aborts(one)
    )
    return asked or any((one.finish or {}).get("type") == "abort" for one in case.story.sampled)


def _aborts(asked: Asked) -> bool:
    """Whether anything may end by it."""
    body = asked.body or {}
    pauses = "pause_generation" in asked.path and body.get("mode", "abort") == "abort"
    return pauses or "abort_request" in asked.path or body.get("abort_all_requests") is True
