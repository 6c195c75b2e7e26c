"""Retrieve everything, as a trainer would, and have every bit of it compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
from tokenizers import Tokenizer

from slime_core.engine import LanguageModel
from slime_trio.demo.check import (
    Mismatch,
    Record,
    compare,
    compare_answer,
    compare_chat,
    compare_logprobs,
    compare_prompts,
    expect,
    record_from,
    without_close,
)
from slime_trio.demo.failure import DemoFailure
from slime_trio.demo.rollout import Rollout, Way, conversation

__all__ = ["Findings", "fetch_json", "fetch_records", "verify"]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was compared, and what was not as it must be. Numbers count what was compared.

    ``retrievals``: each trajectory by its text, and each call on its path by its id.
    ``spanning``: answers sampled by more than one weight version.
    """

    trajectories: int = 0
    retrievals: int = 0
    tokens: int = 0
    sampled: int = 0
    recomputed: int = 0
    spanning: int = 0
    versions: set[str] = field(default_factory=set)
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether something was compared and everything was as it must be."""
        return self.sampled > 0 and not self.mismatches


async def fetch_json(
    client: httpx.AsyncClient, method: str, url: str, body: object | None = None
) -> Any:
    """The JSON of an answer. Raises :class:`DemoFailure`."""
    try:
        response = await client.request(method, url, json=body)
        if response.status_code != 200:
            raise DemoFailure(f"{method} {url}: {response.status_code} {response.text[:200]}")
        return msgspec.json.decode(response.content)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise DemoFailure(f"{method} {url}: {type(error).__name__}: {error}") from error


async def fetch_records(client: httpx.AsyncClient, workers: Sequence[str]) -> dict[str, Record]:
    """What the workers noted, by call."""
    records = {}
    for worker in workers:
        answer = await fetch_json(client, "GET", f"{worker}/slime_worker/records")
        for value in answer["records"]:
            records[value["rid"]] = record_from(value)
    return records


async def verify(
    client: httpx.AsyncClient,
    rollouts: Sequence[Rollout],
    records: dict[str, Record],
    *,
    tokenizer: Tokenizer,
    model: LanguageModel,
    advance: Callable[[], None],
) -> Findings:
    """Compare all rollouts; ``client`` is one of the router. ``advance``: a rollout is done."""
    findings = Findings()
    texts = [rollout.text for rollout in rollouts]
    for rollout in rollouts:
        # Where several rollouts ended in one text, or the last answer has none (a stop token
        # alone), the text cannot tell which answer is meant: then the call is named.
        is_telling = texts.count(rollout.text) == 1 and rollout.said[-1].answer
        findings.trajectories += 1
        chain: list[Record] = []
        for turn, said in enumerate(rollout.said, 1):
            if said.call not in records:
                raise DemoFailure(f"no worker has a record of call {said.call}")
            chain.append(records[said.call])
            _check_call(findings, rollout, chain, tokenizer, model)
            found = await fetch_json(client, "GET", f"/trajectories/{said.call}")
            _check_retrieved(findings, chain, found)
            if turn == len(rollout.said):
                named = {} if is_telling else {"id": said.call}
                found = await _retrieved(client, rollout, named)
                _check_retrieved(findings, chain, without_close(found, len(chain[-1].ids)))
        findings.tokens += len(chain[-1].ids)
        advance()
    return findings


async def _retrieved(client: httpx.AsyncClient, rollout: Rollout, named: dict[str, str]) -> Any:
    """The whole rollout as its agent knows it: by its messages or by its text."""
    if rollout.way is Way.CHAT:
        messages = {"messages": conversation(rollout)}
        return await fetch_json(
            client, "POST", "/retrieve_from_messages_template", messages | named
        )
    return await fetch_json(client, "POST", "/retrieve_from_text", {"text": rollout.text} | named)


def _check_call(
    findings: Findings,
    rollout: Rollout,
    chain: Sequence[Record],
    tokenizer: Tokenizer,
    model: LanguageModel,
) -> None:
    """The last call of ``chain``, before anything is retrieved."""
    record, said = chain[-1], rollout.said[: len(chain)]
    if rollout.way is Way.CHAT:
        findings.mismatches += compare_chat(said[-1], record, tokenizer)
    else:
        findings.mismatches += compare_answer(said[-1], record)
    findings.mismatches += compare_prompts(said, chain, tokenizer)
    findings.mismatches += compare_logprobs(record, model.probability)
    findings.sampled += len(record.output_ids)
    findings.recomputed += len(record.logprobs)
    findings.versions |= set(record.versions)
    findings.spanning += len(set(record.versions)) > 1


def _check_retrieved(findings: Findings, chain: Sequence[Record], found: Any) -> None:
    findings.retrievals += 1
    findings.mismatches += compare(expect(chain), found)
