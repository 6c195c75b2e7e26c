"""Every benchmark runs, with tiny sizes, and fills its tables. No time is asserted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from benchmarks import (
    chat,
    loop_stall,
    matching,
    memory,
    relay_cost,
    retrieval,
    rollouts,
    tokenisation,
)
from benchmarks.__main__ import NAMES, summaries
from benchmarks.chat_served import SERVED_COLUMNS, served_table
from benchmarks.chat_sides import CANONICAL_COLUMNS, MEMORY_COLUMNS, TOOL_COLUMNS
from benchmarks.chat_talk import Sizes, Talk, Words
from benchmarks.chat_turns import STEPS, Model, Scene, conversation, load_model
from benchmarks.report import Cell, Table, percentile, show

_ROOT = Path(__file__).parent.parent


def column(table: Table, name: str) -> list[Cell]:
    """The cells under ``name``."""
    place = table.columns.index(name)
    return [row[place] for row in table.rows]


def numbers(cells: Sequence[Cell]) -> list[float]:
    """The cells, all of which must be numbers."""
    found = [cell for cell in cells if isinstance(cell, (int, float))]
    assert len(found) == len(cells)
    return found


def test_each_benchmark_is_listed_with_a_line() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [name for name, _ in summaries()] == list(NAMES)
    assert all(summary and summary in listed for _, summary in summaries())


def test_a_row_that_does_not_fill_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fill its columns"):
        Table(title="x", columns=("one", "two"), rows=(("only",),))


def test_a_table_is_printed_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(
        title="Costs", columns=("what", "µs"), rows=(("a", 1.5), ("long", 1234)), notes=("a note",)
    )
    show([table])
    printed = capsys.readouterr().out
    assert "  what     µs\n  ----  -----\n  a     1.500\n  long  1,234\n  a note\n" in printed


def test_a_table_as_json_holds_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="Costs", columns=("what", "µs"), rows=(("a", 1.5), ("b", None)))
    show([table], as_json=True)
    printed = msgspec.json.decode(capsys.readouterr().out)
    assert printed["tables"][0]["rows"] == [["a", 1.5], ["b", None]]
    assert {"python", "system", "cores", "load"} <= printed["machine"].keys()


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([5.0, 1.0, 3.0], 95) == 5.0
    assert percentile([5.0, 1.0, 3.0], 0) == 1.0
    assert percentile([], 95) == 0.0


@pytest.mark.parametrize("vocabulary", ["shipped", "byte_level_bpe"])
def test_tokenisation_tells_what_was_reused_in_each_turn(vocabulary: str) -> None:
    options = tokenisation.Options(
        vocabularies=(vocabulary,), groups=2, siblings=2, turns=3, system_tokens=200
    )
    (table,) = tokenisation.measure(options)
    turns = ["1, first of all", "1, sibling", "1, new question", "2", "3"]
    assert table.columns == tokenisation.COLUMNS
    assert column(table, "turn") == turns
    prompt, reused, encoded = (
        numbers(column(table, name)) for name in ("prompt tokens", "reused", "encoded")
    )
    assert [left + right for left, right in zip(reused, encoded, strict=True)] == prompt
    assert reused[0] == 0
    assert all(encoded[place] < reused[place] for place in (1, 2, 3, 4))
    assert any("encoded once for 4 conversations that came in turn: yes" in n for n in table.notes)


def test_retrieval_fills_a_row_for_each_size_and_surrounding() -> None:
    (table,) = retrieval.measure(retrieval.Options(sizes=(1000, 2000), others=(1, 3), repeats=2))
    assert table.columns == retrieval.COLUMNS
    assert column(table, "others") == [1, 1, 3, 3]
    assert all(1000 < tokens < 4000 for tokens in numbers(column(table, "tokens")))
    assert all(figure > 0 for figure in numbers(column(table, "total ms")))


def test_matching_fills_a_row_for_each_surrounding() -> None:
    (table,) = matching.measure(matching.Options(counts=(1, 3), lengths=(1000,), repeats=2))
    assert table.columns == matching.COLUMNS
    assert column(table, "beside")[::2][:4] == ["siblings", "twins", "prompts", "session calls"]
    assert column(table, "how many") == [1, 3] * 4 + [16, 16]
    for name in table.columns[2:]:
        assert all(figure > 0 for figure in numbers(column(table, name)))


def test_memory_of_tokens_and_of_segments_add_up() -> None:
    options = memory.Options(
        tokens=(1000,), texts=("chinese",), widths=("float32", "float64"), total=40_000
    )
    cases = [case for case in memory.cases(options) if case.shape == "rollouts"]
    light, heavy = (memory.weigh(case) for case in cases)
    assert (light.segments, light.tokens) == (heavy.segments, heavy.tokens) == (40, 40_000)
    assert light.payload < light.taken < 2 * light.payload
    assert heavy.payload - light.payload == 4 * 20_000  # half of the tokens have a logprob


def test_memory_fills_a_row_for_each_case() -> None:
    options = memory.Options(
        tokens=(100,), texts=("ascii",), widths=("float32",), shapes=("siblings",), total=2_000
    )
    (table,) = memory.measure(options)
    assert table.columns == memory.COLUMNS
    assert numbers(column(table, "segments")) == [21]
    assert all(figure > 8 for figure in numbers(column(table, "bytes per token")))


def test_stalls_are_told_for_each_phase() -> None:
    options = loop_stall.Options(
        prompt_tokens=600, answer_tokens=100, cumulative_tokens=100, repeats=1, idle_s=0.01
    )
    phases, stalls = loop_stall.measure(options)
    assert phases.columns == loop_stall.PHASE_COLUMNS
    assert stalls.columns == loop_stall.STALL_COLUMNS
    names = column(phases, "phase")
    assert {"long text, new", "long ids, new", "long answer", "long stream"} <= set(names)
    assert len(names) == len(set(names))
    assert all(late >= 0 for late in numbers(column(phases, "longest stall ms")))


def test_every_watched_function_exists() -> None:
    from benchmarks.stall_probe import WATCHED, find_watched

    assert [name for name in WATCHED if find_watched(name) is None] == []


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("shipped")


_SMALL = Sizes(system=20, answer=40, result=60, tools=2)


def test_chat_fills_its_tables_with_what_each_step_took() -> None:
    options = chat.Options(
        vocabularies=("shipped",),
        turns=4,
        rounds=1,
        system_tokens=20,
        answer_tokens=40,
        result_tokens=60,
        tools=2,
        tool_counts=(1, 3),
        histories=(3,),
        served_turns=0,
    )
    turns, growth, tools, canonical, memory = chat.measure(options)
    assert turns.columns == chat.TURN_COLUMNS
    assert column(turns, "turns") == ["1", "2", "3", "4"]
    for step in STEPS:
        assert any(cost > 0 for cost in numbers(column(turns, f"{step} µs")))
    assert all(ratio > 0 for ratio in numbers(column(turns, "own / naive")))
    assert growth.columns == chat.GROWTH_COLUMNS
    assert column(growth, "step") == [*STEPS, "own", "naive"] * 2
    assert any(note.endswith("extend the one before: 0") for note in growth.notes)
    assert tools.columns == TOOL_COLUMNS
    assert column(tools, "tools") == [1, 1, 1, 3, 3, 3]
    assert canonical.columns == CANONICAL_COLUMNS
    assert numbers(column(canonical, "messages")) == [8, 8]
    assert memory.columns == MEMORY_COLUMNS
    assert column(memory, "every turn") == ["extends"] * 3 + ["branches"] * 2


@pytest.mark.parametrize("kind", ["loop", "varied"])
async def test_a_conversation_with_tools_is_extended_turn_by_turn(model: Model, kind: str) -> None:
    turns = await conversation(model, _SMALL, kind, 10, naive=(10,))
    assert all(turn.flags == () for turn in turns)
    prompts = [turn.prompt_tokens for turn in turns]
    assert prompts == sorted(set(prompts))
    assert [turn.naive is not None for turn in turns] == [False] * 9 + [True]


async def test_where_nothing_is_proved_every_turn_with_a_history_is_a_branch(model: Model) -> None:
    scene = Scene(model, refuses=True)
    talk = Talk(scene.words, _SMALL)
    branches = ["branch" in (await scene.turn(talk)).flags for _ in range(3)]
    assert branches == [False, True, True]


def test_varied_answers_differ_in_their_calls(model: Model) -> None:
    words = Words(model.checkpoint.tokenizer)
    loop, varied = (Talk(words, _SMALL, kind=kind).script(16) for kind in ("loop", "varied"))
    assert {said.count("<tool_call>") for said in loop} == {1}
    assert {said.count("<tool_call>") for said in varied} == {1, 2, 3}
    assert {said.startswith("<think>") for said in varied} == {True, False}


def test_the_real_server_is_told_apart_by_turns() -> None:
    table = served_table(_SMALL, 3)
    assert table.columns == SERVED_COLUMNS
    assert column(table, "turns") == ["1", "2", "3"]
    prompts = numbers(column(table, "prompt tokens"))
    assert prompts == sorted(set(prompts))
    for name in ("router CPU µs", "client waits µs"):
        assert all(figure > 0 for figure in numbers(column(table, name)))


def test_a_benchmark_can_be_named_on_the_command_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "memory", "--help"]
    said = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout
    assert "--texts" in said


def test_rollouts_are_told_with_and_without_the_cache() -> None:
    options = rollouts.Options(
        rollouts=4,
        group=2,
        concurrent=2,
        workers=1,
        answer_tokens=4,
        ms_per_token=0.1,
        prefill_tokens_per_s=1e6,
        rounds=1,
    )
    (table,) = rollouts.measure(options)
    assert table.columns == rollouts.COLUMNS
    assert column(table, "capture") == ["on", "off", "on / off"]
    for name in table.columns[1:]:
        assert all(figure > 0 for figure in numbers(column(table, name)))


def test_a_request_in_the_relay_is_told_by_its_cost() -> None:
    options = relay_cost.Options(cases=("ids",), requests=32, rounds=1, clients=2)
    table, *_ = relay_cost.measure(options)
    assert table.columns == relay_cost.COLUMNS
    assert all(cost > 0 for cost in numbers(column(table, "µs per request")))
