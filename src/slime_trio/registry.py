"""The component registry: what middleware and the router share, by name."""

from __future__ import annotations

from typing import Any

__all__ = ["ComponentRegistry", "MissingComponentError"]


class MissingComponentError(LookupError):
    """A required component was never registered."""

    def __str__(self) -> str:
        return str(self.args[0])


class ComponentRegistry:
    """Named components. The router registers ``settings``, ``state``, ``pool`` and, with a
    checkpoint, ``tokenizer``, ``radix_tree`` and ``chat_template``; middleware may add its own.
    """

    def __init__(self) -> None:
        self._components: dict[str, Any] = {}

    def register(self, name: str, component: Any) -> None:
        """Make ``component`` known as ``name``; a later registration replaces an earlier one."""
        self._components[name] = component

    def get(self, name: str) -> Any:
        """The component of that name. Raises :class:`MissingComponentError`."""
        if name not in self._components:
            raise MissingComponentError(
                f"Required component {name!r} not found. "
                f"Available components: {sorted(self._components)}"
            )
        return self._components[name]

    def __contains__(self, name: str) -> bool:
        return name in self._components

    def names(self) -> list[str]:
        """The names registered, sorted."""
        return sorted(self._components)
