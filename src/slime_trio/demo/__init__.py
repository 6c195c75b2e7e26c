"""``slime-router demo``: rollouts through a router and two workers, every token checked.

The servers run in this process, but are spoken to over HTTP only, as anybody would. What the
router hands back is compared with the workers' own records by code that shares nothing with the
router's (:mod:`.check`).
"""

from slime_trio.demo.command import run
from slime_trio.demo.options import add_arguments

__all__ = ["add_arguments", "run"]
