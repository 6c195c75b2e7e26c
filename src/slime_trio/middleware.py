"""Pluggable middleware: ASGI classes named by dotted paths, wrapped around the application.

Each is constructed with ``(app, *, router)``. Plain ASGI classes and subclasses of Starlette's
``BaseHTTPMiddleware`` both work. The first path named is the outermost.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from slime_trio.config import BUILT_IN_CAPTURE, ConfigurationError
from slime_trio.registry import MissingComponentError

__all__ = ["load_middleware", "wrap"]


def load_middleware(paths: Sequence[str]) -> list[Any]:
    """The classes behind ``paths``; the documents' name of the built-in capture is left out.

    Raises :class:`ConfigurationError` for a path that leads nowhere or to nothing callable.
    """
    return [_load(path) for path in paths if path != BUILT_IN_CAPTURE]


def _load(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigurationError(f"middleware {path!r}: expected a dotted path to a class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise ConfigurationError(f"middleware {path!r}: {_words(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigurationError(f"middleware {path!r}: {module_name} has no class {name}")
    return found


def wrap(app: Any, classes: Sequence[Any], router: object) -> Any:
    """``app`` inside one instance of each class. Raises :class:`ConfigurationError`."""
    for cls in reversed(classes):
        try:
            app = cls(app, router=router)
        except MissingComponentError as error:
            raise ConfigurationError(str(error)) from error
        except Exception as error:  # and so may a class
            raise ConfigurationError(
                f"middleware {cls.__module__}.{cls.__qualname__} cannot be constructed with "
                f"(app, *, router): {_words(error)}"
            ) from error
    return app


def _words(error: Exception) -> str:
    """An error of somebody else's code in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
