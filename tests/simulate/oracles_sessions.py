"""The rules of sessions: samples account for every token, and nothing is written when all is over.

As :mod:`tests.simulate.oracles`, of whose list they are a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from tests.simulate.cases import Case, rule
from tests.simulate.naive import Call
from tests.simulate.story import Delivered

__all__: list[str] = []


def _asked(case: Case) -> Iterator[tuple[str, list[tuple[str, Delivered]]]]:
    """What was asked of each session at the end, in order."""
    sessions: dict[str, list[tuple[str, Delivered]]] = {}
    for one in case.story.delivered:
        if one.path.startswith("/sessions/"):
            name, _, what = one.path.removeprefix("/sessions/").partition("/")
            sessions.setdefault(unquote(name), []).append((what, one))
    yield from sessions.items()


@rule("12 sessions")
def sessions_end_as_they_should(case: Case) -> Iterator[str]:
    """Sealed, a session takes no calls and gives the same samples; deleted, it says so."""
    for name, asked in _asked(case):
        told = [(what, one.status) for what, one in asked]
        expected = [("samples", 200), ("seal", 200), ("generate", 409), ("samples", 200)]
        if told != [*expected, ("samples", 410)]:
            yield f"session {name}: {told}"
        elif asked[0][1].body["samples"] != asked[3][1].body["samples"]:
            yield f"session {name} gave other samples when it was asked again"
        case.note("session ended")


@rule("12 samples")
def samples_account_for_every_token(case: Case) -> Iterator[str]:
    """Each captured token is trained once, is context, or was dropped for a reason; columns are
    those of the calls."""
    for name, asked in _asked(case):
        if asked and asked[0][1].status == 200:
            told = asked[0][1]
            own = [
                one
                for one in case.captured()
                if one.session == name and one.is_kept_at(told.begun_at)
            ]
            yield from (f"session {name}: {one}" for one in _problems(case, told.body, own))


def _problems(case: Case, body: dict[str, Any], own: list[Call]) -> Iterator[str]:
    account = body["accounting"]
    dropped = [one for one in account["dropped"] if one.get("call") is not None]
    held = sum(len(one.answer_ids) for one in own)
    counted = account["used"] + account["context"] + sum(one["tokens"] for one in dropped)
    if counted != held:
        yield f"{counted} tokens are accounted for, {held} were captured: {account}"
    trained: set[tuple[str, int]] = set()
    for sample in body["samples"]:
        yield from _sample_problems(case, sample, trained)
    if len(trained) != account["used"]:
        yield f"{len(trained)} tokens are trained, {account['used']} are said to be"


def _sample_problems(
    case: Case, sample: dict[str, Any], trained: set[tuple[str, int]]
) -> Iterator[str]:
    last = case.book.calls[sample["call_ids"][-1]]
    start, size = sample["prompt_length"], sample["response_length"]
    columns = {len(sample["loss_mask"]), len(sample["rollout_log_probs"]), size}
    if sample["tokens"] != last.ids or columns != {len(last.ids) - start}:
        yield f"the sample of {last} has other columns: {columns}"
        return
    if size and sample["loss_mask"][-1]:
        case.note("sample")
    calls = [case.book.calls[name] for name in sample["call_ids"]]
    for place, bit in enumerate(sample["loss_mask"], start):
        if not bit:
            continue
        owner = next((one for one in reversed(calls) if one.start <= place < len(one.ids)), None)
        if (
            owner is None
            or sample["rollout_log_probs"][place - start] != (owner.logprobs[place - owner.start])
        ):
            yield f"token {place} of the sample of {last} is trained, and was not sampled so"
        elif (owner.id, place) in trained:
            yield f"token {place} of {owner} is trained twice"
        else:
            trained.add((owner.id, place))
