"""The router's own ids in place of clients' ``rid``: to a worker, and back in its answer.

SGLang aborts by prefix (``/abort_request`` ends every request whose id begins with the given one),
so where several tenants share workers, none of them may choose what workers know a request by. The
router sends ids of its own, all of one length and unguessable, and puts the client's back into the
answer. Nothing else of a body changes: ids are cut out of the bytes and put into them.

An id is found as a JSON string of its own (``"…"``), perhaps with SGLang's ``_0``, ``_1`` … behind
it, as the parts of a batch are called that has one ``rid``. A quotation mark within a string is
escaped, and no model has seen the id, so nothing else looks like it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from slime_core.errors import ClientError
from slime_core.sglang.request import GenerateRequest
from slime_core.strict_json import BAD_JSON, decode_field

__all__ = ["Restorer", "rename_request", "shown_names"]

_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_NAMES: Final[msgspec.json.Decoder[str | tuple[str, ...] | None]] = msgspec.json.Decoder(
    str | tuple[str, ...] | None
)
_INDEX_DIGITS: Final = 9
_ABSENT: Final = Raw(b"null")


def shown_names(request: GenerateRequest, own: Sequence[str]) -> dict[str, str]:
    """What the client of ``request`` is to be shown for each of ``own``, which name its prompts.

    Raises ``ClientError``, as a worker would, for a list of ids that does not fit the prompts or
    names two of them alike.
    """
    rids, is_list = request.client_rids, request.lists_rids
    if not rids:
        return {}
    if is_list and (not request.batch or len(rids) != len(own) or len(set(rids)) != len(rids)):
        raise ClientError(
            f"rid lists {len(rids)} ids for {len(own)} prompt(s); a list needs a batch of its "
            "length, and ids that differ",
            param="rid",
        )
    if is_list:
        return dict(zip(own, rids, strict=True))
    if request.batch:
        return {name: f"{rids[0]}_{place}" for place, name in enumerate(own)}
    return {own[0]: rids[0]}


def rename_request(body: bytes, own: str) -> tuple[bytes, dict[str, str]]:
    """A request's body with ``own`` for its ``rid``, and the client's ids by those that are sent.

    Of several each begins with ``own``, so that one abort ends them all. The very same bytes, and
    nothing, where it has no ``rid`` or is no JSON object: then no worker finds one in it either.
    Raises ``ClientError`` for a ``rid`` that is no id.
    """
    try:
        fields = _FIELDS.decode(body)
    except BAD_JSON:
        return body, {}
    given = decode_field(_NAMES, fields.get("rid", _ABSENT), "rid")
    if not given:
        return body, {}
    if isinstance(given, str):
        names = {own: given}
        fields["rid"] = Raw(msgspec.json.encode(own))
    else:
        names = {f"{own}_{place:06}": rid for place, rid in enumerate(given)}
        fields["rid"] = Raw(msgspec.json.encode(list(names)))
    return _joined(fields), names


def _joined(fields: Mapping[str, Raw]) -> bytes:
    pieces: list[Any] = []
    for name, value in fields.items():
        pieces += (b",", msgspec.json.encode(name), b":", value)
    pieces[0] = b"{"
    pieces.append(b"}")
    # A Raw is a buffer, which its stub keeps to itself; views of them take ten times as long.
    return b"".join(pieces)


class Restorer:
    """Puts clients' ids back into an answer, however its bytes are cut.

    ``names`` holds them by the ids sent, which have one length. Bytes that may be the beginning of
    an id wait for what follows; :meth:`close` gives what waits in the end.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names: Final = {
            own.encode(): msgspec.json.encode(shown)[:-1] for own, shown in names.items()
        }
        length = len(next(iter(self._names), b""))
        self._longest: Final = length + _INDEX_DIGITS + 2
        # The closing quotation mark is not consumed: it may open what is an id.
        self._pattern: Final = re.compile(rb'"([^"\\]{%d})(_[0-9]{1,9})?(?=")' % length)
        self._waiting = b""
        own, shown = next(iter(self._names.items()), (b"", b""))
        self._indexed: Final = own + b"_"
        self._quoted: Final = b'"%b"' % own, shown + b'"'

    def whole(self, data: bytes) -> bytes:
        """``data`` with the ids put back; it must not end within one."""
        if not self._names:
            return data
        if len(self._names) == 1 and self._indexed not in data:
            return data.replace(*self._quoted)
        return self._pattern.sub(self._shown, data)

    def feed(self, data: bytes) -> bytes:
        """What can be shown of the bytes so far."""
        if not self._names:
            return data
        data = self._waiting + data
        end = self._settled(data)
        data, self._waiting = data[:end], data[end:]
        # What waits begins with a quotation mark, which ends a string if it is no id's beginning.
        return self.whole(data + b'"')[:-1] if self._waiting else self.whole(data)

    def close(self) -> bytes:
        """What is left."""
        rest, self._waiting = self._waiting, b""
        return rest

    def _shown(self, found: re.Match[bytes]) -> bytes:
        shown = self._names.get(found[1])
        return found[0] if shown is None else shown + (found[2] or b"")

    def _settled(self, data: bytes) -> int:
        """Up to where ``data`` holds no beginning of an id that is not whole."""
        at = data.find(b'"', max(0, len(data) - self._longest))
        while at >= 0:
            begun = data[at + 1 :]
            if b'"' not in begun and any(_may_become(begun, own) for own in self._names):
                return at
            at = data.find(b'"', at + 1)
        return len(data)


def _may_become(begun: bytes, own: bytes) -> bool:
    """Whether bytes behind a quotation mark may be the beginning of an id and its index."""
    if len(begun) <= len(own):
        return own.startswith(begun)
    index = begun[len(own) :]
    return begun.startswith(own) and re.fullmatch(rb"_[0-9]{0,9}", index) is not None
