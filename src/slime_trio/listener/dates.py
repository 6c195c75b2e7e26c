"""The ``date`` of answers, made once per second."""

from __future__ import annotations

import time
from email.utils import formatdate

__all__ = ["Dates"]


class Dates:
    """Called, it gives the value of the field ``date`` (RFC 9110, 6.6.1)."""

    def __init__(self) -> None:
        self._second = 0
        self._value = b""

    def __call__(self) -> bytes:
        """Now, by the system's clock."""
        second = int(time.time())
        if second != self._second:
            self._second, self._value = second, formatdate(second, usegmt=True).encode()
        return self._value
