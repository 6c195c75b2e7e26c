"""The bridge over templates written in Python: honest ones, odd ones, and ones that lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from random import Random
from typing import Any

import pytest

from slime_core.chat.bridge import Bridge, Delta
from slime_core.chat.rendering import Message, Rendered
from slime_core.chat.spellings import Spellings
from slime_core.chat.stubs import compressed, kind_of
from slime_core.errors import ClientError

_TOKENS = ("<s>", "<e>", "<eos>", "<r>", "<c>", "</c>")

Turn = Callable[[Message, int, Sequence[Message]], str]
"""What is written for a message at a place in a conversation."""


def _said(message: Message) -> str:
    calls = "".join(
        f"<c>{call['function']['name']}={call['function']['arguments']['key']}</c>"
        for call in message.get("tool_calls") or ()
    )
    return f"{message['content']}{calls}"


def _honest(message: Message, place: int, messages: Sequence[Message]) -> str:
    return f"<s>{message['role']}\n{_said(message)}<e>\n"


class _Template:
    """A template in Python; counts its renderings."""

    def __init__(self, turn: Turn, *, prompt: str = "<s>assistant\n") -> None:
        self._turn = turn
        self._prompt = prompt
        self.renderings = 0
        self.sizes: list[int] = []

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> Rendered:
        self.renderings += 1
        self.sizes.append(len(messages))
        text = "".join(self._turn(one, at, messages) for at, one in enumerate(messages))
        return Rendered(text=text + (self._prompt if add_generation_prompt else ""))


def _bridge(template: _Template | Turn, *ends: str) -> Bridge:
    render = template if isinstance(template, _Template) else _Template(template)
    return Bridge(render, added=Spellings(_TOKENS), turn_ends=ends or ("<e>", "<eos>"))


def _user(content: str = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(content: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def _call(name: str = "f", **fields: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": {"key": "value"}}
    return _answer(
        "", tool_calls=[{"id": "c1", "type": "function", "function": function}], **fields
    )


def _result(content: str = "found") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c1", "content": content}


_HELD = (_user(), _answer())


# --- what an honest template writes ------------------------------------------------------------


def test_a_users_message_comes_behind_the_close_with_its_separator() -> None:
    delta = _bridge(_honest).delta(_HELD, [_user("More")])
    assert delta == Delta(close="<e>", text="\n<s>user\nMore<e>\n<s>assistant\n")


def test_results_of_calls_are_rendered_together() -> None:
    delta = _bridge(_honest).delta([_user(), _call()], [_result("a"), _result("b")])
    assert delta is not None
    assert delta.text == "\n<s>tool\na<e>\n<s>tool\nb<e>\n<s>assistant\n"


def test_nothing_appended_is_the_next_prompt() -> None:
    assert _bridge(_honest).delta(_HELD, []) == Delta(close="<e>", text="\n<s>assistant\n")


def test_nothing_appended_and_no_prompt_is_what_ends_the_conversation() -> None:
    delta = _bridge(_honest).delta(_HELD, [], add_generation_prompt=False)
    assert delta == Delta(close="<e>", text="\n")


def test_nothing_is_extended_where_no_prompt_opens_a_turn() -> None:
    assert _bridge(_Template(lambda m, *_: f"<s>{m['content']}<e>", prompt="")).delta(
        _HELD, []
    ) is (None)


def test_only_a_turn_is_extended() -> None:
    assert _bridge(_honest).delta([], [_user()]) is None
    assert _bridge(_honest).delta([_user()], [_user()]) is None


def test_a_close_that_differs_at_the_end_is_that_of_the_history() -> None:
    def turn(message: Message, place: int, messages: Sequence[Message]) -> str:
        is_last = place == len(messages) - 1 and message["role"] == "assistant"
        return f"<s>{message['content']}{'<eos>' if is_last else '<e>'}"

    delta = _bridge(turn).delta(_HELD, [_user("More")])
    assert delta == Delta(close="<e>", text="<s>More<e><s>assistant\n")


def test_where_turns_have_no_end_the_opener_is_named() -> None:
    delta = _bridge(lambda m, *_: f"<s>{m['role']}\n{_said(m)}").delta(_HELD, [_user("More")])
    text = "<s>user\nMore<s>assistant\n"
    assert delta == Delta(close="", text=text, opener="<s>")


def test_calls_that_end_without_a_close_end_with_their_own_tag() -> None:
    bridge = _bridge(lambda m, *_: f"<s>{m['role']}\n{_said(m)}")
    delta = bridge.delta([_user(), _call()], [_result()])
    assert delta is not None
    assert delta.text == "<s>tool\nfound<s>assistant\n"


def test_calls_that_a_template_drops_do_not_keep_it_from_being_extended() -> None:
    bridge = _bridge(lambda m, *_: f"<s>{m['role']}\n{m['content']}<e>\n")
    delta = bridge.delta([_user(), _call()], [_result()])
    assert delta is not None
    assert delta.text == "\n<s>tool\nfound<e>\n<s>assistant\n"


def test_the_names_and_ids_of_the_held_calls_are_those_of_the_history() -> None:
    def turn(message: Message, place: int, messages: Sequence[Message]) -> str:
        calls = messages[place - 1].get("tool_calls")
        by = f"{calls[0]['function']['name']}/{calls[0]['id']} " if calls else ""
        return f"<s>{by}{_said(message)}<e>"

    delta = _bridge(turn).delta([_user(), _call("look_up")], [_result()])
    assert delta is not None
    assert delta.text == "<s>look_up/c1 found<e><s>assistant\n"


def test_words_of_stubs_are_none_of_the_clients() -> None:
    delta = _bridge(_honest).delta(_HELD, [_user("qz0x qz0x1z qz1x2z series1z")])
    assert delta is not None
    assert "\nqz0x qz0x1z qz1x2z series1z<e>" in delta.text


def test_plain_ranges_of_the_delta_count_from_its_beginning() -> None:
    def render(messages: Sequence[Message], **_: Any) -> Rendered:
        text = "".join(f"<s>{message['content']}<e>" for message in messages)
        at = text.find("<c>")
        return Rendered(text=text, plain=((at, at + 3),) if at >= 0 else ())

    bridge = Bridge(render, added=Spellings(_TOKENS), turn_ends=("<e>",))
    delta = bridge.delta(_HELD, [_user("a<c>b")], add_generation_prompt=False)
    assert delta == Delta(close="<e>", text="<s>a<c>b<e>", plain=((4, 7),))


# --- templates that look further back ----------------------------------------------------------


def _first_results(message: Message, place: int, messages: Sequence[Message]) -> str:
    """Opens the first group of results only, as DeepSeek V3 does."""
    is_first = message["role"] == "tool" and not any(m["role"] == "tool" for m in messages[:place])
    return f"<s>{'<r>' if is_first else ''}{_said(message)}<e>"


def test_what_depends_on_earlier_turns_is_rendered_behind_them() -> None:
    bridge = _bridge(_first_results)
    first = bridge.delta([_user(), _call()], [_result()])
    second = bridge.delta([_user(), _call(), _result(), _call()], [_result()])
    assert first is not None
    assert second is not None
    assert first.text == "<s><r>found<e><s>assistant\n"
    assert second.text == "<s>found<e><s>assistant\n"


def test_a_turn_number_is_that_of_the_real_conversation() -> None:
    bridge = _bridge(lambda m, place, _: f"<s>{place}: {_said(m)}<e>")
    history: list[Message] = []
    for number in range(40):
        history += [_user(), _answer()]
        delta = bridge.delta(history, [_user("More")])
        assert delta is not None
        assert delta.text == f"<s>{2 * number + 2}: More<e><s>assistant\n"


def test_a_template_that_refuses_the_small_stub_is_asked_with_the_whole_history() -> None:
    def turn(message: Message, place: int, messages: Sequence[Message]) -> str:
        if messages[0]["role"] != "system":
            raise ClientError("begin with a system message")
        return _honest(message, place, messages)

    history = [{"role": "system", "content": "Be brief."}, *_HELD]
    delta = _bridge(turn).delta(history, [_user("More")])
    assert delta == Delta(close="<e>", text="\n<s>user\nMore<e>\n<s>assistant\n")


def test_a_shape_is_proved_a_few_times_and_then_known() -> None:
    template = _Template(_honest)
    bridge = _bridge(template)
    history: list[Message] = [_user(), _call()]
    for _ in range(40):
        template.sizes.clear()
        assert bridge.delta(history, [_result()]) is not None
        history += [_result(), _call()]
    assert template.sizes == [3, 3, 2]


def _varied(steps: int, seed: int) -> Iterator[list[Message]]:
    """Histories of an agent whose steps differ: the next one is a step longer."""
    chance = Random(seed)
    history: list[Message] = [_user(), _call()]
    for _ in range(steps):
        yield history
        results = [_result() for _ in range(chance.randint(1, 3))]
        thought = {"reasoning_content": "Hm."} if chance.random() < 0.5 else {}
        history = [*history, *results, {**_call(), **thought}]


def test_steps_that_differ_are_known_after_a_while() -> None:
    template = _Template(_honest)
    bridge = _bridge(template)
    for history in _varied(120, 0):
        template.sizes.clear()
        assert bridge.delta(history, [_result()]) is not None
    assert template.sizes == [3, 3, 2]


@pytest.mark.parametrize("modulus", [2, 3, 5])
def test_steps_that_differ_do_not_hide_that_a_template_counts(modulus: int) -> None:
    bridge = _bridge(lambda message, place, _: f"<s>{place % modulus}: {_said(message)}<e>")
    for history in _varied(60, 1):
        delta = bridge.delta(history, [_result("More")])
        assert delta is not None
        assert delta.text == f"<s>{len(history) % modulus}: More<e><s>assistant\n"


def test_a_short_shape_is_proved_once() -> None:
    template = _Template(_honest)
    bridge = _bridge(template)
    bridge.delta(_HELD, [_user("More")])
    template.sizes.clear()
    assert bridge.delta(_HELD, [_user("Even more")]) is not None
    assert template.sizes == [3, 3, 2]


@pytest.mark.parametrize("modulus", [2, 3])
def test_a_template_that_counts_in_a_circle_is_not_believed_too_early(modulus: int) -> None:
    def turn(message: Message, place: int, messages: Sequence[Message]) -> str:
        return f"<s>{place % modulus}: {_said(message)}<e>"

    bridge = _bridge(turn)
    history: list[Message] = [one for _ in range(13) for one in (_user(), _answer())]
    for _ in range(12):
        delta = bridge.delta(history, [_user("More")])
        assert delta is not None
        assert delta.text == f"<s>{len(history) % modulus}: More<e><s>assistant\n"
        history += [_user(), _answer()]


def test_blanks_that_a_close_takes_along_are_not_rendered_again() -> None:
    bridge = Bridge(
        _Template(_honest), added=Spellings(_TOKENS), turn_ends=("<e>",), strip_right=("<e>",)
    )
    delta = bridge.delta(_HELD, [_user("More")])
    assert delta == Delta(close="<e>", text="<s>user\nMore<e>\n<s>assistant\n")


def test_tools_and_arguments_are_part_of_a_shape() -> None:
    def render(messages: Sequence[Message], *, tools: Any, **_: Any) -> Rendered:
        hint = tools[0]["name"] if tools else ""
        return Rendered(text="".join(f"<s>{hint}{message['content']}<e>" for message in messages))

    bridge = Bridge(render, added=Spellings(_TOKENS), turn_ends=("<e>",))
    for name in ("first", "second"):
        delta = bridge.delta(_HELD, [_user("More")], tools=[{"name": name}])
        assert delta is not None
        assert delta.text == f"<s>{name}More<e>"


def test_a_failure_is_not_remembered() -> None:
    def turn(message: Message, place: int, messages: Sequence[Message]) -> str:
        if message["content"] == "bad":
            raise ClientError("no such content")
        return _honest(message, place, messages)

    bridge = _bridge(turn)
    assert bridge.delta(_HELD, [_user("bad")]) is None
    assert bridge.delta(_HELD, [_user("More")]) is not None


# --- templates that lie ------------------------------------------------------------------------

_NUMBERS = count()


def _length(messages: Sequence[Message]) -> int:
    return sum(len(str(message["content"])) for message in messages)


def _echo(message: Message, place: int, messages: Sequence[Message]) -> str:
    """Quotes what was said before, behind the turn."""
    before = messages[place - 1]["content"] if place else ""
    return f"<s>{_said(message)}<e>\n> {before}\n"


LIARS: dict[str, Turn] = {
    "counts renderings": lambda m, *_: f"<s>{next(_NUMBERS)} {_said(m)}<e>",
    "counts characters": lambda m, place, all_: f"<s>{_length(all_[:place])} {_said(m)}<e>",
    "quotes the turn before": _echo,
    "drops answers": lambda m, *_: f"<s>{'' if m['role'] == 'assistant' else _said(m)}<e>",
    "ends turns with text": lambda m, *_: f"{m['role']}: {_said(m)}[end]\n",
    "opens turns with text": lambda m, *_: f"{m['role']}: {_said(m)}",
    "separates turns that have no end": lambda m, *_: f"<s>{_said(m)}\n",
    "closes a last turn only": lambda m, place, all_: (
        f"<s>{_said(m)}{'<e>' if place == len(all_) - 1 else ''}"
    ),
    "rewrites a last turn": lambda m, place, all_: (
        f"<s>{_said(m)}{' (last)' if place == len(all_) - 1 else ''}<e>"
    ),
    "shortens": lambda m, *_: f"<s>{_said(m)[:3]}<e>",
    "turns words around": lambda m, *_: f"<s>{_said(m)[::-1]}<e>",
}


@pytest.mark.parametrize("name", LIARS)
def test_a_template_that_cannot_be_trusted_is_refused(name: str) -> None:
    assert _bridge(LIARS[name]).delta(_HELD, [_user("More")]) is None


def test_a_template_that_raises_is_refused() -> None:
    def turn(message: Message, place: int, messages: Sequence[Message]) -> str:
        raise ClientError("no")

    assert _bridge(turn).delta(_HELD, [_user()]) is None


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = "end"
    for _ in range(100_000):
        deep = [deep]
    tools = [{"type": "function", "function": {"name": "f", "parameters": deep}}]
    assert _bridge(_honest).delta(_HELD, [_user()], tools=tools) is None


# --- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (_user(), ("user", True, False, 0)),
        (_user(""), ("user", False, False, 0)),
        (_user([{"type": "text", "text": "a"}]), ("user", True, False, 0)),  # type: ignore[arg-type]
        (_answer(reasoning_content="Hm."), ("assistant", True, True, 0)),
        (_answer("<think>Hm.</think>\n"), ("assistant", False, True, 0)),
        (_call(), ("assistant", False, False, 1)),
        ({"role": "assistant", "content": None}, ("assistant", False, False, 0)),
    ],
)
def test_the_kind_of_a_message_is_what_control_flow_may_see(
    message: Message, kind: tuple[str, bool, bool, int]
) -> None:
    assert kind_of(message) == kind


def _compressed(history: list[Message]) -> list[Message]:
    return [history[place] for place in compressed(list(map(kind_of, history)))]


def test_a_long_history_is_compressed_to_one_of_each_kind() -> None:
    steps = [one for _ in range(30) for one in (_call(), _result())]
    other = [_call(reasoning_content="Hm."), _result()]
    history: list[Message] = [_user(), *steps[:20], *other, *steps, _call()]
    short = _compressed(history)
    assert len(short) < 16
    assert short[0] == _user()
    assert any(message.get("reasoning_content") for message in short)
    assert short[-8:] == history[-8:]


def test_rounds_of_a_long_history_are_compressed_too() -> None:
    history: list[Message] = [one for _ in range(50) for one in (_user(), _answer())]
    short = _compressed(history)
    assert len(short) < 16
    assert [message["role"] for message in short[:4]] == ["user", "assistant"] * 2


def test_a_short_history_is_left() -> None:
    history: list[Message] = [_user(), _call(), _result(), _answer(), _user(), _answer()]
    assert _compressed(history) == history
