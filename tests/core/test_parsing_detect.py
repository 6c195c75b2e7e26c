"""The parsers that a chat template asks for."""

from __future__ import annotations

import pytest

from slime_core.parsing import REASONING_PARSERS, TOOL_CALL_PARSERS, ParserChoice, detect

_THINKS = "{{ '<think>' + m.reasoning_content + '</think>' }}"
_SOURCES = {
    ("qwen3", "qwen25"): _THINKS + "{{ '<tool_call>' + (call | tojson) + '</tool_call>' }}",
    (None, "qwen25"): "{{ '<tool_call>' + (call | tojson) + '</tool_call>' }}",
    ("qwen3", "qwen3_coder"): _THINKS + "{{ '<tool_call><function=' + name + '>' }}",
    (None, "qwen3_coder"): "{{ '<tool_call><function=' + name + '>' }}",
    ("glm45", "glm45"): _THINKS + "<tool_call>{{ name }}<arg_key>{{ k }}</arg_key>",
    ("kimi_k2", "kimi_k2"): _THINKS + "<|tool_calls_section_begin|>{{ calls }}",
    ("deepseek-r1", "deepseekv3"): "{% if '</think>' in t %}<｜tool▁calls▁begin｜>\n```json\n",
    ("deepseek-v3", "deepseekv31"): _THINKS + "<｜tool▁calls▁begin｜>{{ calls }}",
    ("minimax", "minimax-m2"): _THINKS + '<minimax:tool_call><invoke name="',
    ("mistral", "mistral"): "[THINK]{{ t }}[/THINK][TOOL_CALLS]{{ calls }}",
    (None, "mistral"): "[TOOL_CALLS]{{ calls }}",
    ("gpt-oss", "gpt-oss"): "<|start|>assistant<|channel|>final<|message|>{{ m.content }}",
    ("qwen3", None): _THINKS + "{{ m.content }}",
    ("kimi", None): "◁think▷{{ t }}◁/think▷",
    (None, None): "{{ m.role }}: {{ m.content }}",
}


@pytest.mark.parametrize(("names", "source"), _SOURCES.items(), ids=map(str, _SOURCES))
def test_what_a_template_writes_names_the_parsers(
    names: tuple[str | None, str | None], source: str
) -> None:
    assert detect(source, ()) == ParserChoice(reasoning=names[0], tool_calls=names[1])


def test_the_vocabulary_tells_llama_apart() -> None:
    source = """{% if tools %}Answer with {"name": name, "parameters": object}.{% endif %}"""
    assert detect(source, ("<|python_tag|>",)).tool_calls == "llama3"
    assert detect(source, ("<|im_end|>",)).tool_calls is None


def test_a_vocabulary_alone_asks_for_nothing() -> None:
    added = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>")
    nothing = ParserChoice(reasoning=None, tool_calls=None)
    assert detect("{{ messages }}", added) == nothing


def test_every_name_that_is_found_has_a_parser() -> None:
    found = [detect(source, ()) for source in _SOURCES.values()]
    assert {choice.reasoning for choice in found} - {None} <= set(REASONING_PARSERS)
    assert {choice.tool_calls for choice in found} - {None} <= set(TOOL_CALL_PARSERS)
