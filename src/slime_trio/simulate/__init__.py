"""``slime-router simulate``: fleets and balancing policies, compared before they are bought.

The simulation itself is pure and lives in :mod:`slime_core.simulation`; here is what surrounds it:
flags and TOML files, recorded traces, progress, tables, JSON and pictures.
"""

from slime_trio.simulate.command import run
from slime_trio.simulate.options import add_arguments

__all__ = ["add_arguments", "run"]
