"""SGLang's own dialect, ``POST /generate``: the worker's answer as the worker gave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from slime_core import sglang, sse
from slime_core.calls import Calls
from slime_core.chat.places import Shown
from slime_core.errors import ClientError, SlimeError, as_sglang
from slime_core.types import Encoding, PackedIds
from slime_trio.exchange import Headers, Inbound

__all__ = ["NativeDialect"]

_EXPERTS_START: Final = "routed_experts_start_len"
"""A request says it and no answer repeats it."""


class NativeDialect:
    """One ``/generate`` request whose calls are captured."""

    verbatim = True
    reads_logprobs = False
    prompt_param: str | None = None

    def __init__(self, request: sglang.GenerateRequest, inbound: Inbound) -> None:
        self._request = request
        self.asked: sglang.Asked = request
        self.streams = request.stream
        self.by_text = isinstance(request.prompts[0], sglang.TextPrompt)
        # Aborting by a client's own id could end others' calls too: workers match by prefix.
        self.names_calls = request.n == 1 and (inbound.own_ids or not request.client_rids)
        self._own_ids = inbound.own_ids
        self._shown: tuple[str, ...] = ()
        self._shows_all = all(request.wants_logprobs)
        self._restorer: sglang.Restorer | None = None
        self.parent = _parent(request, inbound)

    @property
    def shows_events(self) -> bool:
        """Where no id in them must be another; those without logprobs are none of the plain."""
        return not self._shown

    async def prepare(self, capture: Calls) -> None:
        """Nothing."""

    def open(self, capture: Calls) -> None:
        """Raw text is encoded as a worker would; ids are taken as they are."""
        for prompt in self._request.prompts:
            match prompt:
                case sglang.TextPrompt(text=text):
                    capture.open_text(text, Encoding.RAW, self._request.n)
                case sglang.IdsPrompt(ids=ids):
                    capture.open_ids(ids, self._request.n)
                case sglang.EmbedsPrompt():
                    raise ClientError("embeddings cannot be captured", param="input_embeds")

    def worker_body(self, prompts: Sequence[PackedIds], capture: Calls) -> bytes:
        """The client's own body with ids for text, and the calls named."""
        request = self._request
        rids: Sequence[str] = capture.calls[:: request.n]
        if self._own_ids and request.n == 1:
            shown = sglang.shown_names(request, rids)
            self._shown = tuple(shown.values())
            self._restorer = sglang.Restorer(shown)
        return sglang.encode_generate(
            request,
            input_ids=prompts if self.by_text else None,
            rids=rids if request.batch else rids[0],
            replace_rids=self._own_ids,
            write_ids=capture.write_ids,
        )

    def aliases(self, sample: int) -> tuple[str, ...]:
        """The ids that the client gave; the worker's own are known to the capture."""
        rids = self._request.client_rids
        named = rids if len(rids) < 2 else rids[sample // self._request.n :][:1]
        return (*named, *self._shown[sample : sample + 1])

    def read(self, answers: Sequence[sglang.Answer]) -> None:
        """Nothing: the client gets the worker's own words."""

    def captured(self, sample: int, answer: sglang.Answer) -> tuple[sglang.Answer, Shown | None]:
        """The answer as it came, and from which token on its routed experts are."""
        start = self._request.fields.get(_EXPERTS_START)
        if start is None:
            return answer, None
        return replace(answer, extras={**answer.extras, _EXPERTS_START: bytes(start)}), None

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The body, without logprobs that only the router had asked for, under the client's ids."""
        shown = body if self._shows_all else sglang.strip_logprobs(body, self._request)
        return shown if self._restorer is None else self._restorer.whole(shown)

    def _restored(self, shown: bytes) -> bytes:
        return shown if self._restorer is None else self._restorer.whole(shown)

    def headers(self) -> Headers:
        """The worker's are passed on."""
        return []

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def step(self, step: sglang.StreamStep) -> bytes:
        """The event's own bytes, or the event without logprobs, under the client's ids."""
        return self._restored(step.raw)

    def finish(self, sample: int) -> bytes:
        """Nothing: the last event's view says it."""
        return b""

    def end(self) -> bytes:
        """Nothing: the worker's ``[DONE]`` was passed on."""
        return b""

    def error(self, error: SlimeError) -> bytes:
        """An event as SGLang sends it for an error within a stream."""
        return sse.encode(msgspec.json.encode(as_sglang(error)))


def _parent(request: sglang.GenerateRequest, inbound: Inbound) -> str | None:
    """The call that the client says it extends: ``parent_id`` or ``x-slime-parent-id``."""
    raw = request.fields.get("parent_id")
    if raw is None:
        field = b"x-slime-parent-id"
        return inbound.header(field) if field in inbound.first else None
    try:
        return msgspec.json.decode(raw, type=str | None)
    except msgspec.ValidationError:
        raise ClientError("parent_id must be a string", param="parent_id") from None
