"""The demonstration: its comparison finds what is planted, and the whole of it passes."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import httpx
import msgspec
import pytest
from tokenizers import Tokenizer

from slime_trio.cli import main
from slime_trio.demo.check import (
    Mismatch,
    Record,
    Said,
    compare,
    compare_answer,
    compare_chat,
    compare_logprobs,
    compare_prompts,
    expect,
    without_close,
)
from slime_trio.demo.options import DemoOptions
from slime_trio.demo.rollout import Rollout, Way, plan_rollouts
from slime_trio.demo.story import ANSWER_END, Message, appended
from slime_trio.demo.verify import Findings, verify
from slime_trio.worker import SHIPPED_CHECKPOINT, Model, load_model

_SMALL = ["--groups", "2", "--siblings", "4", "--turns", "3", "--max-tokens", "16"]
_ADDED = (
    appended([Message(role="user", content="Hello!")], after_answer=False),
    appended([Message(role="user", content="And  then?\n")], after_answer=True),
)
_ANSWERS = ("Hi there.", "Nothing at all.")

Columns = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(SHIPPED_CHECKPOINT)


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return model.tokenizer


@pytest.fixture(scope="module")
def chain(model: Model) -> list[Record]:
    """Two turns as workers would note them; each under weights of its own."""
    history: list[int] = []
    records = []
    for turn, (added, answer) in enumerate(zip(_ADDED, _ANSWERS, strict=True)):
        if history:
            added = added.removeprefix(ANSWER_END)
        prompt = history + model.encode(added, add_special_tokens=False)
        output = model.encode(answer + ANSWER_END, add_special_tokens=False)
        history = prompt + output
        records.append(_record(model, f"call{turn}", prompt, output, answer, str(turn)))
    return records


def _record(
    model: Model, rid: str, prompt: list[int], output: list[int], text: str, version: str
) -> Record:
    ids = prompt + output
    places = range(len(prompt), len(ids))
    probability = model.language.probability
    return Record(
        rid=rid,
        prompt_ids=tuple(prompt),
        output_ids=tuple(output),
        logprobs=tuple(math.log(probability(ids[:at], ids[at], version)) for at in places),
        versions=(version,) * len(output),
        text=text,
    )


@pytest.fixture(scope="module")
def said() -> list[Said]:
    """The same two turns as their client knows them."""
    turns = zip(_ADDED, _ANSWERS, strict=True)
    return [
        Said(call=f"call{turn}", added=added, answer=answer)
        for turn, (added, answer) in enumerate(turns)
    ]


def _retrieved(chain: list[Record]) -> Columns:
    """What a router without fault would hand back, put together from the two answers' places."""
    last = chain[-1]
    size = len(last.prompt_ids) + len(last.output_ids)
    mask, logprobs, versions, runs = [0] * size, [0.0] * size, [-1] * size, []
    for record in chain:
        start = len(record.prompt_ids)
        for place, logprob in enumerate(record.logprobs, start):
            mask[place], logprobs[place] = 1, logprob
            versions[place] = int(record.versions[0])
        end = start + len(record.output_ids)
        runs.append({"version": record.versions[0], "start": start, "end": end})
    return {
        "tokens": [*last.prompt_ids, *last.output_ids],
        "loss_mask": mask,
        "rollout_logp": logprobs,
        "generation_versions": versions,
        "weight_versions": runs,
        "token_length": size,
        "loss_mask_length": size,
        "matched_length": size,
        "cut": False,
    }


def _kinds(mismatches: list[Mismatch]) -> set[str]:
    return {one.what for one in mismatches}


# -- the comparison --------------------------------------------------------------------------


def test_a_faultless_trajectory_matches(chain: list[Record]) -> None:
    assert compare(expect(chain), _retrieved(chain)) == []


@pytest.mark.parametrize("place", [0, 9, -1], ids=["first", "early", "last"])
@pytest.mark.parametrize(
    ("column", "kind", "spoil"),
    [
        ("tokens", "id", lambda value: value + 1),
        ("loss_mask", "mask", lambda value: 1 - value),
        ("rollout_logp", "logprob", lambda value: value - 1e-6),
        ("generation_versions", "version", lambda value: value + 1),
    ],
    ids=["id", "mask", "logprob", "version"],
)
def test_one_wrong_value_is_one_mismatch(
    chain: list[Record], column: str, kind: str, place: int, spoil: Callable[[Any], Any]
) -> None:
    found = _retrieved(chain)
    found[column][place] = spoil(found[column][place])
    (mismatch,) = compare(expect(chain), found)
    assert mismatch.what == kind
    assert mismatch.place == place % len(found["tokens"])
    assert mismatch.found == spoil(mismatch.expected)


@pytest.mark.parametrize("edge", ["start", "end", "version"])
def test_a_wrong_version_run_is_found(chain: list[Record], edge: str) -> None:
    found = _retrieved(chain)
    run = found["weight_versions"][1]
    run[edge] = {"start": run["start"] + 1, "end": run["end"] - 1, "version": "x"}[edge]
    assert _kinds(compare(expect(chain), found)) == {"version's name"}


@pytest.mark.parametrize("column", ["tokens", "loss_mask", "rollout_logp", "generation_versions"])
def test_a_short_column_is_found(chain: list[Record], column: str) -> None:
    found = _retrieved(chain)
    found[column].pop()
    (mismatch,) = compare(expect(chain), found)
    assert (mismatch.expected, mismatch.found) == (len(chain[-1].ids), len(chain[-1].ids) - 1)


@pytest.mark.parametrize("name", ["token_length", "loss_mask_length", "matched_length", "cut"])
def test_a_wrong_summary_is_found(chain: list[Record], name: str) -> None:
    found = _retrieved(chain)
    found[name] = 1
    assert _kinds(compare(expect(chain), found)) == {name}


def test_history_that_was_encoded_anew_is_found(chain: list[Record]) -> None:
    first, last = chain
    changed = list(last.prompt_ids)
    changed[first.sampled.start] += 1
    drifted = replace(last, prompt_ids=tuple(changed))
    assert "history kept" in _kinds(expect([first, drifted]).problems)


def test_a_prompt_that_is_no_plain_encoding_is_found(
    chain: list[Record], said: list[Said], tokenizer: Tokenizer
) -> None:
    assert compare_prompts(said, chain, tokenizer) == []
    drifted = replace(chain[-1], prompt_ids=(*chain[-1].prompt_ids[:-1], 0))
    (mismatch,) = compare_prompts(said, [chain[0], drifted], tokenizer)
    assert mismatch.place == len(drifted.prompt_ids) - 1


def test_a_doubled_stop_token_is_found(
    chain: list[Record], said: list[Said], tokenizer: Tokenizer
) -> None:
    end = len(chain[0].ids)
    ids = chain[1].prompt_ids
    doubled = replace(chain[1], prompt_ids=(*ids[:end], ids[end - 1], *ids[end:]))
    assert _kinds(compare_prompts(said, [chain[0], doubled], tokenizer)) == {
        "number of encoded prompts"
    }


def test_other_ids_than_the_client_sent_are_found(
    chain: list[Record], said: list[Said], tokenizer: Tokenizer
) -> None:
    sent = replace(said[1], prompt_ids=(7, *chain[1].prompt_ids[1:]))
    assert _kinds(compare_prompts([said[0], sent], chain, tokenizer)) == {"id sent"}


def test_another_answer_than_the_worker_gave_is_found(chain: list[Record]) -> None:
    wrong = Said(call="call0", added="", answer="Hi there", output_ids=(1,))
    assert _kinds(compare_answer(wrong, chain[0])) == {"answer's text", "number of answer's ids"}


def test_another_message_than_was_sampled_is_found(
    chain: list[Record], tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("<think>Hm.</think>Yes.<|im_end|>", add_special_tokens=False).ids
    record = replace(chain[0], output_ids=tuple(ids))
    right = Said(call="call0", added="", answer="Yes.", reasoning="Hm.")
    assert compare_chat(right, record, tokenizer) == []
    for wrong in (replace(right, answer="No."), replace(right, reasoning=None)):
        assert _kinds(compare_chat(wrong, record, tokenizer)) == {"message"}


def test_what_the_template_writes_behind_an_answer_is_left_out(chain: list[Record]) -> None:
    found = _retrieved(chain)
    longer = found | {
        "tokens": [*found["tokens"], 5],
        "loss_mask": [*found["loss_mask"], 0],
        "rollout_logp": [*found["rollout_logp"], 0.0],
        "generation_versions": [*found["generation_versions"], -1],
        "token_length": found["token_length"] + 1,
        "loss_mask_length": found["loss_mask_length"] + 1,
    }
    assert without_close(longer, found["token_length"]) == found


def test_a_sampled_token_behind_an_answer_is_never_left_out(chain: list[Record]) -> None:
    found = _retrieved(chain)
    assert without_close(found, found["token_length"] - 1) == found


def test_a_logprob_that_the_model_would_not_give_is_found(
    chain: list[Record], model: Model
) -> None:
    probability = model.language.probability
    assert compare_logprobs(chain[0], probability) == []
    wrong = replace(chain[0], logprobs=(chain[0].logprobs[0] - 0.001, *chain[0].logprobs[1:]))
    assert _kinds(compare_logprobs(wrong, probability)) == {"model's logprob"}
    stale = replace(chain[0], versions=("1",) * len(chain[0].output_ids))
    assert len(compare_logprobs(stale, probability)) > 0


# -- the verdict -----------------------------------------------------------------------------


async def _findings(
    chain: list[Record],
    said: list[Said],
    model: Model,
    spoil: Callable[[str, Columns], None],
) -> Findings:
    """The verdict on a router that answers as it must, but for what ``spoil`` does to a path."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        calls = chain[:1] if path == "/trajectories/call0" else chain
        found = _retrieved(calls)
        spoil(path, found)
        return httpx.Response(200, content=msgspec.json.encode(found))

    rollout = Rollout(number=0, group=0, way=Way.TEXT, streams=False, messages=[], said=said)
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(base_url="http://router", transport=transport) as client:
        return await verify(
            client,
            [rollout],
            {record.rid: record for record in chain},
            tokenizer=model.tokenizer,
            model=model.language,
            advance=lambda: None,
        )


async def test_the_verdict_counts_what_was_compared(
    chain: list[Record], said: list[Said], model: Model
) -> None:
    findings = await _findings(chain, said, model, lambda path, found: None)
    assert findings.is_clean
    assert (findings.trajectories, findings.retrievals) == (1, 3)
    assert findings.tokens == len(chain[-1].ids)
    assert findings.sampled == sum(len(record.output_ids) for record in chain)
    assert findings.recomputed == findings.sampled


@pytest.mark.parametrize(
    "path", ["/trajectories/call0", "/trajectories/call1", "/retrieve_from_text"]
)
@pytest.mark.parametrize("column", ["tokens", "loss_mask", "rollout_logp", "generation_versions"])
async def test_one_wrong_value_in_any_retrieval_fails_the_verdict(
    chain: list[Record], said: list[Said], model: Model, path: str, column: str
) -> None:
    def spoil(asked: str, found: Columns) -> None:
        if asked == path:
            found[column][-1] += 1

    findings = await _findings(chain, said, model, spoil)
    assert not findings.is_clean
    assert len(findings.mismatches) == 1


def test_nothing_sampled_is_no_success() -> None:
    assert not Findings().is_clean


# -- the command -----------------------------------------------------------------------------


def test_half_of_the_groups_chat_and_the_others_send_text_or_ids() -> None:
    rollouts = plan_rollouts(DemoOptions(groups=4, siblings=4))
    ways = [one.way for one in rollouts]
    assert (ways.count(Way.CHAT), ways.count(Way.TEXT), ways.count(Way.IDS)) == (8, 4, 4)
    for way in Way:
        assert {one.streams for one in rollouts if one.way is way} == {True, False}


def test_every_token_of_the_demonstration_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *_SMALL]) == 0
    shown = capsys.readouterr().out
    assert "PASS: 0 mismatches" in shown
    assert "8 trajectories retrieved 32 times" in shown
    assert "weights 0, 1, 2" in shown
    assert re.search(r"│ +3 │ .* │ +8 │", shown)
    assert re.search(r"<\|im_start\|>assistant↵\n\[", shown)
    assert "\x1b" not in shown


def test_a_missing_extra_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(["demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs openai" in line
    assert "slime-router[demo]" in line


@pytest.mark.parametrize("words", [["--groups", "0"], ["--siblings", "x"], ["--seed", "-1"]])
def test_a_bad_size_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *words])
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


@contextmanager
def _running(*words: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The command in a process of its own, and what it prints."""
    command = [sys.executable, "-m", "slime_trio", "demo", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def _line_with(lines: IO[str], words: str) -> str:
    return next(line for line in lines if words in line)


def test_servers_stay_up_until_interrupted_and_the_verdict_stands() -> None:
    with _running("--keep-running", "--groups", "1", "--siblings", "1") as (process, lines):
        _line_with(lines, "PASS")
        url = re.search(r"http\S+", _line_with(lines, "/trajectories/"))
        assert url is not None
        assert httpx.get(url[0], trust_env=False).json()["loss_mask"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, "")


def test_interrupting_ends_without_a_traceback() -> None:
    with _running() as (process, lines):
        _line_with(lines, "worker")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (130, "slime-router demo: interrupted\n")
