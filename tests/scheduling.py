"""How the tests are dealt to several processes, where pytest-xdist runs them (``-n``).

A file's tests stay together, so that what a module sets up is set up once. The files that load real
vocabularies are one unit: a gigabyte, and many seconds of loading, which no second process should
pay for. The few files whose tests take long and share nothing are dealt test by test: the largest
units go first, so that these fill up the end, when one process would otherwise wait for the other.
Both tests of a harness's corpus read the same runs, so they are one unit.
"""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadScopeScheduling

__all__ = ["Scheduling", "unit_of"]

_VOCABULARIES: Final = "vocabularies"
_WITH_VOCABULARIES: Final = (
    "tests/core/test_detokenize.py",
    "tests/core/test_rules.py",
    "tests/core/test_vocabulary.py",
    "tests/hard_cases/",
    "tests/server/test_hard_tokens.py",
    "tests/server/test_tokenizer.py",
)
_ONE_BY_ONE: Final = (
    "tests/core/test_fuzz_decoders.py",
    "tests/server/test_simulate_command.py",
    "tests/simulate/",
)
_CORPUS: Final = "tests/simulate/test_corpus.py"
_HARNESSES: Final = ("[core]", "[shell]")


def unit_of(nodeid: str) -> str:
    """The name of the unit that a test is dealt with."""
    if nodeid.startswith(_WITH_VOCABULARIES):
        return _VOCABULARIES
    if nodeid.startswith(_CORPUS) and nodeid.endswith(_HARNESSES):
        return _CORPUS + nodeid[nodeid.index("[") :]
    return nodeid if nodeid.startswith(_ONE_BY_ONE) else nodeid.partition("::")[0]


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # which is not typed
    """xdist's scheduling by units, with ours for its own."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
