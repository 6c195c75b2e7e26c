"""The simulated worker: :class:`SimWorker`, and what it is made of."""

from tests.simulate.workers.worker import SimWorker

__all__ = ["SimWorker"]
