"""A router to be asked from another thread, and what may be wrong with its answers."""

from __future__ import annotations

import copy
import queue
import threading
from types import TracebackType
from typing import Any, Final

import requests
import schemathesis
import structlog
import trio
from hypothesis import HealthCheck, Phase, given, settings

from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.openapi import OPERATIONS, document
from slime_trio.router import Router
from slime_trio.serve import bind, serve
from tests import listeners
from tests.server.harness import CHECKPOINT, chatting, checkpoint, embedded_worker

__all__ = ["Target", "operations", "search", "wrong_with"]

_LEGAL: Final = frozenset(
    {
        # No worker, none that is fit, or all of them paused or busy.
        (503, "no_workers"),
        (503, "no_fit_workers"),
        (503, "queue_timeout"),
        # A worker that was registered cannot be reached.
        (502, "connect_failed"),
        (504, "connect_timeout"),
        # A feature that this router was not started with.
        (501, "capture_off"),
        (501, "not_supported"),
    }
)
"""Statuses from 500 on that are no fault of the router's, with their codes."""

_WORKERS_FAULTS: Final = ("upstream_error", "upstream_unreachable", "timeout")

_DEAD_WORKER: Final = {"type": "string", "pattern": r"^http://127\.0\.0\.[2-9]:[1-9]$"}
"""Nothing listens there, and nothing but this machine is reached."""

_FEW: Final = frozenset({"control"})


class _NoNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> Any:
        raise OSError("names lead nowhere in this test")

    async def getnameinfo(self, *_: Any) -> Any:
        raise OSError("names lead nowhere in this test")


def operations(target: Target, *, examples: int = 5) -> dict[str, tuple[Any, int]]:
    """Every operation by its name, and how many examples it is worth.

    What paths name is there, or is not, in turn.
    """
    told = copy.deepcopy(document(captures=True))
    for name in ("WorkerUrl", "WorkerRegistration"):
        told["components"]["schemas"][name]["properties"]["url"] = _DEAD_WORKER
    for path, methods in told["paths"].items():
        for method, one in methods.items():
            for parameter in one.get("parameters", ()):
                if parameter["in"] == "path" and method != "delete" and "seal" not in path:
                    known = target.known(path, parameter["name"])
                    parameter["schema"] = {"type": "string", "enum": [*known, "nobody"]}
    tags = {row.id: row.tag for row in OPERATIONS}
    found = {}
    for result in schemathesis.openapi.from_dict(told).get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]
        name = operation.definition.raw["operationId"]
        found[name] = operation, max(2, examples // 4) if tags[name] in _FEW else examples
    return found


class Target:
    """A router with an embedded worker, served in a thread of its own while this is entered."""

    def __init__(self) -> None:
        self._started: queue.Queue[tuple[str, trio.lowlevel.TrioToken, trio.Event]] = queue.Queue()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)
        self._session = requests.Session()
        self._session.trust_env = False
        self._errors: list[str] = []
        self._url = ""

    def __enter__(self) -> Target:
        self._thread.start()
        self._url, self._token, self._stop = self._started.get(timeout=30)
        opened = self._post("/sessions", {})
        body: Any = {"text": "Hello", "sampling_params": {"max_new_tokens": 2}}
        asked = self._session.post(f"{self._url}{opened['path']}/generate", json=body, timeout=20)
        worker = self._post("/workers", {"url": "http://127.0.0.2:2"})["worker_id"]
        model = self._session.get(f"{self._url}/v1/models", timeout=20).json()["data"][0]["id"]
        self._known = {
            "session": [opened["session_id"]],
            "trajectories": [asked.headers["x-slime-call-id"]],
            "models": [model],
            "workers": [worker],
            "path": ["flush_cache", "get_server_info", "generate"],
        }
        return self

    def known(self, path: str, parameter: str) -> list[str]:
        """What a path may name, and finds."""
        words = [parameter, *path.split("/")]
        return next((self._known[word] for word in words if word in self._known), [])

    def _post(self, path: str, body: Any) -> Any:
        return self._session.post(self._url + path, json=body, timeout=20).json()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(30)
        self._session.close()

    async def _serve(self) -> None:
        trio.socket.set_custom_hostname_resolver(_NoNames())
        stop = trio.Event()
        async with embedded_worker() as worker:
            chosen = Settings(
                host="127.0.0.1",
                hf_checkpoint=CHECKPOINT,
                worker_urls=(worker.url,),
                queue_timeout_s=0.05,
                connect_timeout_s=0.2,
                shutdown_grace_s=0.2,
                listener=listeners.chosen(),
            )
            router = Router(chosen, checkpoint=checkpoint())
            router.shared.use_chatting(chatting())
            app = create_app(chosen, router=router)
            structlog.configure(processors=[self._noted, *structlog.get_config()["processors"]])
            listener = bind(chosen.host, 0)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._started.put((url, trio.lowlevel.current_trio_token(), stop))
            await serve(app, chosen, listener, until=stop)

    def _noted(self, logger: Any, method: str, event: Any) -> Any:
        if method in ("error", "critical", "exception"):
            self._errors.append(str(event))
        return event

    def ask(self, case: Any) -> requests.Response:
        """Send a case; the whole answer."""
        request = case.as_transport_kwargs(base_url=self._url)
        request["headers"] = {
            name: value for name, value in request["headers"].items() if "\n" not in value
        }
        return self._session.request(**request, timeout=20, allow_redirects=False)

    def trouble(self) -> list[str]:
        """What was logged as an error since this was last asked."""
        found, self._errors = self._errors, []
        return found


def search(target: Target, operation: Any, examples: int) -> None:
    """Ask ``target`` what ``operation`` allows, so often. Raises for the first wrong answer."""

    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        wrong = wrong_with(target.ask(case))
        assert not wrong, wrong

    ask()
    assert target.trouble() == []


def wrong_with(answer: requests.Response) -> list[str]:
    """What no answer of the router may be."""
    wrong = []
    if b"Traceback" in answer.content or b'File "' in answer.content:
        wrong.append("a traceback")
    if answer.status_code >= 400 and _is_json(answer):
        body = answer.json()
        legal = (answer.status_code, _code_of(body)) in _LEGAL or _is_told_of_workers(body)
        legal = legal or _is_unready(body)
        if answer.status_code >= 500 and not legal:
            wrong.append(f"{answer.status_code} {answer.text[:300]}")
    elif answer.status_code >= 400 and not _is_metrics_of_no_worker(answer):
        wrong.append(f"{answer.status_code} that is no JSON: {answer.text[:300]}")
    return wrong


def _is_told_of_workers(body: Any) -> bool:
    """Whether it is what a control call came to that every worker refused or did not hear."""
    failed = body.get("failed") if isinstance(body, dict) else None
    if not isinstance(failed, list):
        return isinstance(body, dict) and body.get("error") in _WORKERS_FAULTS
    return bool(failed) and all(one["error"] in _WORKERS_FAULTS for one in failed)


def _is_unready(body: Any) -> bool:
    """Whether it says that not all sorts of workers are there: half of a pair may have come."""
    return isinstance(body, dict) and body.get("status") == "not ready"


def _is_metrics_of_no_worker(answer: requests.Response) -> bool:
    """Metrics that say of every worker that it told none."""
    return answer.status_code == 502 and "slime_engine_metrics_up" in answer.text


def _code_of(body: Any) -> object:
    """The code of an error of the router's; workers word theirs otherwise."""
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _is_json(answer: requests.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("application/json")
