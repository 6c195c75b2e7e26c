"""The embedded worker: SGLang's HTTP API in front of :mod:`slime_core.engine`."""

from slime_trio.worker.app import create_worker_app, run, serve_worker
from slime_trio.worker.faults import Fault, parse_fault
from slime_trio.worker.model import Model, load_model
from slime_trio.worker.options import SHIPPED_CHECKPOINT, WorkerOptions, add_arguments

__all__ = [
    "SHIPPED_CHECKPOINT",
    "Fault",
    "Model",
    "WorkerOptions",
    "add_arguments",
    "create_worker_app",
    "load_model",
    "parse_fault",
    "run",
    "serve_worker",
]
