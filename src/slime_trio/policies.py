"""Balancing policies by the names that settings use: those of the core, or one's own.

A policy of one's own is a function, or an object that can be called, of the form of
:class:`slime_core.policies.Policy`, named by its dotted path. It is called for every call that is
placed, on the event loop: what it raises, that call is answered with.
"""

from __future__ import annotations

import importlib
import inspect

from slime_core.policies import POLICIES, Policy
from slime_trio.config import ConfigurationError

__all__ = ["load_policy"]


def load_policy(name: str) -> Policy:
    """The policy of that name or dotted path. Raises :class:`ConfigurationError`."""
    known = POLICIES.get(name.replace("_", "-"))
    if known is not None:
        return known
    module_name, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"policy {name!r}: {words}") from error
    found: Policy | None = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigurationError(f"policy {name!r}: {module_name} has no function {attribute}")
    if not _takes_two(found):
        raise ConfigurationError(f"policy {name!r} does not take (workers, placement)")
    return found


def _takes_two(found: Policy) -> bool:
    """Whether it can be called as a policy is; of what has no signature it is not known."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind((), None)
    except TypeError:
        return False
    return not inspect.iscoroutinefunction(found)
