"""The control plane: what is told to all workers, or to some, and what it does to the router.

:mod:`~slime_trio.control.paths` is the table of all paths, :mod:`~slime_trio.control.service` what
each kind of them does, :mod:`~slime_trio.control.routes` how it is asked for over HTTP.
"""

from slime_trio.control.service import Control

__all__ = ["Control"]
