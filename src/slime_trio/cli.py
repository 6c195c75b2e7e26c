"""The command line: ``slime-router [serve|demo|worker|simulate] …``; without a word ``serve``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from slime_trio import config

if TYPE_CHECKING:
    from quart_trio import QuartTrio

__all__ = ["main"]

_COMMANDS = ("serve", "worker", "demo", "simulate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. 2: it could not start as asked, and one line said why."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0] not in _COMMANDS and words[0] not in ("-h", "--help")):
        words.insert(0, "serve")
    try:
        parsed = _parser(words[0]).parse_args(words)
        return int(parsed.run(parsed))
    except config.ConfigurationError as error:
        print(f"slime-router: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser; a command's own flags are added, and its code imported, only if it is meant."""
    parser = argparse.ArgumentParser(
        prog="slime-router",
        description="Routes RL rollouts to inference workers and keeps their tokens exact.",
    )
    commands = parser.add_subparsers(required=True, metavar="|".join(_COMMANDS))
    serve = commands.add_parser("serve", help="run the router (the default)")
    config.add_arguments(serve)
    serve.set_defaults(run=_serve)
    worker = commands.add_parser("worker", help="run the embedded SGLang-compatible worker")
    demo = commands.add_parser("demo", help="run rollouts through a router and check every token")
    simulate = commands.add_parser(
        "simulate", help="compare fleets and balancing policies in simulated time"
    )
    if command == "worker":
        from slime_trio import worker as embedded

        embedded.add_arguments(worker)
        worker.set_defaults(run=embedded.run)
    elif command == "demo":
        from slime_trio import demo as demonstration

        demonstration.add_arguments(demo)
        demo.set_defaults(run=demonstration.run)
    elif command == "simulate":
        from slime_trio import simulate as simulation

        simulation.add_arguments(simulate)
        simulate.set_defaults(run=simulation.run)
    return parser


def _serve(parsed: argparse.Namespace) -> int:
    """Listen at once; the rest of the program is loaded beside the listener."""
    import trio

    from slime_trio.serve import bind, serve
    from slime_trio.starting import Starting

    # Middleware may be a module in the working directory; a console script does not look there.
    sys.path.append(os.getcwd())
    settings = config.from_arguments(parsed)
    starting = Starting(partial(_load, settings))
    with bind(settings.host, settings.port) as listener:
        announce = partial(_announce, settings, listener.getsockname()[:2])
        status = trio.run(partial(serve, when_ready=announce), starting, settings, listener)
    if starting.router is None:
        # Stopped while it was loading. The interpreter would end under the thread that still
        # loads, which the libraries in it do not survive: they would abort the process.
        os._exit(status)
    return status


def _load(settings: config.Settings, say: Callable[[str], None]) -> Callable[[], QuartTrio]:
    # Imported in the thread: this takes long too.
    from slime_trio.loading import load

    return load(settings, say)


def _announce(settings: config.Settings, address: tuple[str, int]) -> None:
    from slime_trio.limits.exposure import exposure

    host, port = address
    scheme = "http" if settings.tls_cert is None else "https"
    print(f"slime-router listens on {scheme}://{host}:{port}", file=sys.stderr, flush=True)
    if warning := exposure(settings):
        print(f"slime-router: {warning}", file=sys.stderr, flush=True)
