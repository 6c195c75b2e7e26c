"""What was asked for, by flags and by a TOML file: fields, fleet, trace, policies and sweeps.

Flags win over the file. Every problem is a :class:`ConfigurationError` of one line that names the
flag, or the file and its key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from slime_core.policies import POLICIES
from slime_core.simulation import WorkerSpeed, Workload
from slime_trio.config import ConfigurationError
from slime_trio.simulate.fields import FIELDS, Field, field_named, parse
from slime_trio.simulate.words import word_of

__all__ = ["ALL", "Choices", "Sweep", "from_file", "with_flags"]

ALL: Final = "all"
_BLOCK: Final = "fleet"
_SPEED: Final = {field.name: field for field in FIELDS if field.part is WorkerSpeed}


@dataclass(frozen=True, slots=True)
class Sweep:
    """A field and the values that it takes in turn."""

    field: Field
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What was asked for. ``sources`` says of each name where its value comes from."""

    values: Mapping[str, Any] = field(
        default_factory=lambda: {field.name: field.default for field in FIELDS}
    )
    sources: Mapping[str, str] = field(default_factory=dict)
    fleet: tuple[Mapping[str, Any], ...] = ()
    """Kinds of workers, each with its ``workers`` and the speeds that differ from ``values``."""
    trace: Path | None = None
    policies: tuple[str, ...] = tuple(POLICIES)
    sweeps: tuple[Sweep, ...] = ()

    def source(self, name: str) -> str:
        """Where the value of ``name`` comes from; its flag, if it was not given."""
        known = field_named(name)
        return self.sources.get(name) or (f"--{name}" if known is None else known.flag)


def _parsed(known: Field, word: str, source: str) -> Any:
    try:
        return parse(known, word)
    except ValueError as error:
        raise ConfigurationError(f"{source}: {word!r} is not valid: {error}") from error


# -- the file ----------------------------------------------------------------------------


def from_file(path: Path) -> Choices:
    """What a TOML file asks for. Raises :class:`ConfigurationError`."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    choices = Choices()
    values, sources = dict(choices.values), {}
    for key, value in told.items():
        sources[key] = f"{path}: {key}"
        known = field_named(key) if key in choices.values else None
        if known is not None:
            values[key] = _parsed(known, _word(value, sources[key]), sources[key])
        elif key not in (_BLOCK, "trace", "policy", "sweep"):
            raise ConfigurationError(f"{path}: {key} is not a field of a scenario")
    choices = replace(choices, values=values, sources=sources)
    if _BLOCK in told:
        choices = replace(choices, fleet=_fleet(told, sources))
    if "trace" in told:
        trace = path.parent / _word(told["trace"], sources["trace"])
        choices = replace(choices, trace=trace)
    if "policy" in told:
        words = _words(told["policy"], sources["policy"])
        choices = replace(choices, policies=_policies(words, sources["policy"]))
    if "sweep" in told:
        choices = replace(choices, sweeps=_sweeps_of_file(told["sweep"], sources["sweep"]))
    return choices


def _word(value: object, source: str) -> str:
    try:
        return word_of(value)
    except ValueError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _words(value: object, source: str) -> list[str]:
    return [_word(one, source) for one in (value if isinstance(value, list) else [value])]


def _fleet(told: Mapping[str, Any], sources: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """The ``[[fleet]]`` tables: kinds of workers."""
    source, blocks = sources[_BLOCK], told[_BLOCK]
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ConfigurationError(f"{source}: expected tables, each headed [[fleet]]")
    if "workers" in told:
        raise ConfigurationError(f"{sources['workers']}: is told by each [[fleet]] already")
    known = {"workers": FIELDS[0], **_SPEED}
    kinds = []
    for number, block in enumerate(blocks, 1):
        where = f"{source} {number}"
        for key in block:
            if key not in known:
                raise ConfigurationError(f"{where}: {key} is not a field of a worker")
        kinds.append(
            {
                key: _parsed(known[key], _word(value, f"{where}: {key}"), f"{where}: {key}")
                for key, value in ({"workers": 1} | block).items()
            }
        )
    return tuple(kinds)


def _sweeps_of_file(told: object, source: str) -> tuple[Sweep, ...]:
    if not isinstance(told, dict):
        raise ConfigurationError(f"{source}: expected a table of fields and lists of values")
    return tuple(
        _sweep(_swept(name, source), _words(values, f"{source}.{name}"), f"{source}.{name}")
        for name, values in told.items()
    )


def _sweep(known: Field, words: Sequence[str], source: str) -> Sweep:
    """Each value once, in the order in which they were given."""
    if not words:
        raise ConfigurationError(f"{source}: expected at least one value")
    return Sweep(known, tuple(dict.fromkeys(_parsed(known, word, source) for word in words)))


# -- flags -------------------------------------------------------------------------------


def with_flags(choices: Choices, given: Mapping[str, Any]) -> Choices:
    """``choices``, and what flags say. Raises :class:`ConfigurationError`.

    ``given`` holds the word of each flag that was used; of those that may repeat, a list.
    """
    values, sources = dict(choices.values), dict(choices.sources)
    for known in FIELDS:
        if known.name in given:
            sources[known.name] = known.flag
            values[known.name] = _parsed(known, given[known.name], known.flag)
    fleet = () if "workers" in given else choices.fleet
    choices = replace(choices, values=values, sources=sources, fleet=fleet)
    if "trace" in given:
        choices = replace(
            choices, trace=Path(given["trace"]), sources={**sources, "trace": "--trace"}
        )
    if "policy" in given:
        choices = replace(choices, policies=_policies(given["policy"], "--policy"))
    if "sweep" in given:
        choices = replace(choices, sweeps=tuple(map(_sweep_of_flag, given["sweep"])))
    return _checked(choices)


def _policies(words: Sequence[str], source: str) -> tuple[str, ...]:
    names = [name for word in words for name in word.replace(",", " ").split()]
    for name in names:
        if name not in POLICIES and name != ALL:
            known = ", ".join((*POLICIES, ALL))
            raise ConfigurationError(f"{source}: {name!r} is not one of {known}")
    if not names:
        raise ConfigurationError(f"{source}: expected at least one")
    if ALL in names:
        return tuple(POLICIES)
    return tuple(dict.fromkeys(names))


def _sweep_of_flag(word: str) -> Sweep:
    name, equals, values = word.partition("=")
    if not equals:
        raise ConfigurationError(f"--sweep: {word!r} is not valid: expected FIELD=VALUE,VALUE,…")
    known = _swept(name, "--sweep")
    return _sweep(known, values.split(","), f"--sweep {known.name}")


def _swept(name: str, source: str) -> Field:
    known = field_named(name)
    if known is None:
        raise ConfigurationError(f"{source}: {name} is not a field of a scenario")
    return known


_DRAWN: Final = [f.name for f in FIELDS if f.part is Workload and f.name != "system_tokens"]
"""What a trace tells. It does not tell how long the prompt is that all sessions begin with."""


def _checked(choices: Choices) -> Choices:
    """Refuse what contradicts itself."""
    swept = [sweep.field.name for sweep in choices.sweeps]
    for name in swept:
        if swept.count(name) > 1:
            raise ConfigurationError(f"--sweep {name}: is there twice")
    if choices.fleet and "workers" in swept:
        raise ConfigurationError("--sweep workers: is told by each [[fleet]] already")
    if choices.trace is not None:
        for name in _DRAWN:
            if name in choices.sources or name in swept:
                raise ConfigurationError(
                    f"{choices.source(name)}: has no effect with {choices.source('trace')}, "
                    "which tells what is asked for"
                )
    return choices
