"""Several threads that load a chat template at once do not import its library at once."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from slime_trio.chat_renderer import load_transformers


class _Lazy(types.ModuleType):
    """Gives its parts when they are named, and notes whether two threads ask at once."""

    def __init__(self) -> None:
        super().__init__("transformers")
        self._asking = threading.Lock()
        self.collisions = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self._asking.acquire(blocking=False):
            self.collisions += 1
            raise AttributeError(name)
        try:
            # Long enough for whoever is let in to come in.
            threading.Event().wait(0.02)
        finally:
            self._asking.release()
        return _Loads


class _Loads:
    @classmethod
    def from_pretrained(cls, path: str, **_options: Any) -> str:
        return path


def test_threads_import_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = _Lazy()
    monkeypatch.setitem(sys.modules, "transformers", lazy)
    loaded: list[Any] = []
    threads = [
        threading.Thread(target=lambda: loaded.append(load_transformers(Path("x"))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lazy.collisions == 0
    assert loaded == [("x", ())] * 3
