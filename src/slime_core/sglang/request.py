"""``POST /generate`` of SGLang: what the router must know of a request, and what it sends on.

The request is decoded one level deep. The few fields that decide about prompts, counts and
logprobs are understood; every other field, known to SGLang or not, travels on byte for byte, and
judging it is left to the worker. What is judged here is only what the router itself depends on.

Rules come from SGLang 0.5.23 (``io_struct.GenerateReqInput``): exactly one of ``text``,
``input_ids`` and ``input_embeds``; a list form is a batch, even of length 1; with a batch or with
``n`` > 1 the answer is an array in prompt-major order.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import msgspec
from msgspec import Raw

from slime_core.errors import ClientError, InvariantError
from slime_core.lifted import lift
from slime_core.long_lists import MAX_TOKEN_ID, IdList, WriteIds, encode_ids
from slime_core.strict_json import BAD_JSON, Decodes, decode_field, is_null, parse_object
from slime_core.types import ID_BYTES, NO_IDS, PackedIds

__all__ = [
    "EmbedsPrompt",
    "GenerateRequest",
    "IdsPrompt",
    "Prompt",
    "TextPrompt",
    "encode_generate",
    "parse_generate",
]


_Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]


class TextPrompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A prompt given as text; never empty."""

    text: str


class IdsPrompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A prompt given as token ids; empty only where a worker's session continues."""

    ids: PackedIds


class EmbedsPrompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A prompt given as embeddings: it has neither text nor ids and cannot be captured."""


Prompt = TextPrompt | IdsPrompt | EmbedsPrompt


class _Sampling(msgspec.Struct, frozen=True):
    """What is looked at of one ``sampling_params`` object; the rest is the worker's to judge."""

    n: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Plain(msgspec.Struct, gc=False):
    """A request of the form that nearly all have: one prompt, and no list where one may be."""

    text: str | None = None
    input_ids: list[int] | None = None
    sampling_params: _Sampling | None = None
    stream: bool | None = None
    return_logprob: bool | None = None
    rid: str | None = None


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One ``/generate`` request as its client sent it."""

    body: bytes
    fields: Mapping[str, Raw]
    """Every field in the client's order; a repeated key has kept its last value."""
    prompts: tuple[Prompt, ...]
    batch: bool
    """The list form was used, even with a single element."""
    n: int
    """Samples per prompt."""
    samples: int
    """How many answers there will be; sample ``i`` belongs to prompt ``i // n``."""
    array: bool
    """Whether the answer is an array, and stream events carry ``index``."""
    stream: bool
    wants_logprobs: tuple[bool, ...]
    """Per prompt: whether the client asked for logprobs."""
    client_rids: tuple[str, ...]
    """The ids the client named: none, one for all, or one per prompt."""
    lists_rids: bool
    """They came as a list, even with a single element."""
    media: bool
    """Images, video or audio ride along: the text is not the whole prompt."""
    session: bool
    """A worker's session continues: what stands before the prompt is known to the worker only."""

    @property
    def opaque(self) -> bool:
        """Whether text and ids do not tell the whole prompt: forwarded, never captured."""
        return self.media or self.session or isinstance(self.prompts[0], EmbedsPrompt)

    def shows_logprobs(self, sample: int) -> bool:
        """Whether the client sees the logprobs of this sample."""
        return self.wants_logprobs[sample // self.n]


_PLAIN: Final = msgspec.json.Decoder(_Plain)
_TEXTS: Final[msgspec.json.Decoder[str | tuple[str, ...]]] = msgspec.json.Decoder(
    str | tuple[str, ...]
)
_IDS: Final = IdList()
_BATCH_OF_IDS: Final = msgspec.json.Decoder(list[list[_Id]])
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_SAMPLING: Final = msgspec.json.Decoder(_Sampling)
_SAMPLINGS: Final = msgspec.json.Decoder(tuple[_Sampling, ...])
_BOOL: Final = msgspec.json.Decoder(bool)
_BOOLS: Final[msgspec.json.Decoder[bool | tuple[bool, ...]]] = msgspec.json.Decoder(
    bool | tuple[bool, ...]
)
_SESSION: Final = msgspec.json.Decoder(dict[str, Any])

_LONG: Final = 4096
"""Shorter bodies are parsed sooner than anything is lifted out of them."""

_MEDIA: Final = ("image_data", "video_data", "audio_data")
_PROMPTS: Final = ("text", "input_ids", "input_embeds")
_NEVER_PLAIN: Final = frozenset({*_MEDIA, "input_embeds", "session_id", "session_params"})

# Ignored by a worker unless logprobs are asked for. The router asks for them on its own account,
# which must not wake these up: a start position in the prompt would switch prefix reuse off.
_ASLEEP_WITHOUT_LOGPROBS: Final = {
    "logprob_start_len": b"-1",
    "top_logprobs_num": b"0",
    "token_ids_logprob": b"null",
}

_TRUE: Final = Raw(b"true")
_KEYS: Final = {
    name: b',"%b":' % name.encode()
    for name in ("text", "input_ids", "sampling_params", "stream", "return_logprob", "rid")
}
_IDS_FOR_TEXT: Final = _KEYS | {"text": b',"input_ids":'}


def parse_generate(body: bytes, *, read_ids: Decodes[PackedIds] = _IDS) -> GenerateRequest:
    """The request in ``body``; ``read_ids`` decodes the ids of a prompt that is long.

    Raises :class:`ClientError`, which names the field at fault.
    """
    lifted = lift(body, b'"input_ids"') if len(body) >= _LONG else None
    if lifted is not None:
        with suppress(ClientError):  # the body as it came says better what is wrong with it
            fields = parse_object(lifted.rest)
            if lifted.stands_in(fields.get("input_ids")):
                fields["input_ids"] = Raw(lifted.raw)
                return _request(body, fields, read_ids)
    fields = parse_object(body)
    return _plain(body, fields) or _request(body, fields, read_ids)


def _plain(body: bytes, fields: dict[str, Raw]) -> GenerateRequest | None:
    """The request, read in one typed pass; ``None`` where it is not plain, or wrong: reading it
    field by field says what it is."""
    if len(body) >= _LONG or not _NEVER_PLAIN.isdisjoint(fields):
        return None
    try:
        read = _PLAIN.decode(body)
        ids = NO_IDS if read.input_ids is None else _packed(read.input_ids)
    except (*BAD_JSON, OverflowError):
        return None
    # One prompt and not empty; the last of an id's four bytes tells whether it is too large.
    if bool(ids) == bool(read.text) or not ids[ID_BYTES - 1 :: ID_BYTES].isascii():
        return None
    if read.text == "" or read.input_ids == []:
        return None
    params = read.sampling_params
    n = 1 if params is None else params.n or 1
    return GenerateRequest(
        body=body,
        fields=fields,
        prompts=(TextPrompt(text=read.text) if read.text else IdsPrompt(ids=ids),),
        batch=False,
        n=n,
        samples=n,
        array=n > 1,
        stream=read.stream is True,
        wants_logprobs=(read.return_logprob is True,),
        client_rids=() if read.rid is None else (read.rid,),
        lists_rids=False,
        media=False,
        session=False,
    )


def _request(body: bytes, fields: dict[str, Raw], read_ids: Decodes[PackedIds]) -> GenerateRequest:
    given = {name: raw for name, raw in fields.items() if not is_null(raw)}
    session = "session_id" in given or _names_session(given.get("session_params"))
    prompts, batch = _prompts(given, read_ids, empty_allowed=session)
    n = _n(given.get("sampling_params"), len(prompts), batch)
    return GenerateRequest(
        body=body,
        fields=fields,
        prompts=prompts,
        batch=batch,
        n=n,
        samples=len(prompts) * n,
        array=batch or n > 1,
        stream="stream" in given and decode_field(_BOOL, given["stream"], "stream"),
        wants_logprobs=_wants_logprobs(given.get("return_logprob"), len(prompts)),
        client_rids=_rids(given.get("rid")),
        lists_rids=bytes(given.get("rid", b""))[:1] == b"[",
        media=any(name in given and bytes(given[name]) != b"[]" for name in _MEDIA),
        session=session,
    )


def encode_generate(
    request: GenerateRequest,
    *,
    input_ids: Sequence[PackedIds] | None,
    rids: str | Sequence[str] | None,
    replace_rids: bool = False,
    write_ids: WriteIds = encode_ids,
) -> bytes:
    """The body for the worker: the client's, with as little changed as can be.

    ``input_ids``, one entry per prompt, takes the place of ``text``; ``None`` leaves the prompts as
    they came. ``rids`` names the call where the client did not, or always with ``replace_rids``.
    ``return_logprob`` is always true.
    Where nothing has to change, these are the client's own bytes. Raises
    :class:`InvariantError` for ids that do not fit the prompts.
    """
    fields: dict[str, bytes | Raw] = {**request.fields}
    is_changed = input_ids is not None
    if rids is not None and (replace_rids or not request.client_rids):
        fields["rid"] = msgspec.json.encode(rids)
        is_changed = True
    if fields.get("return_logprob") != _TRUE:
        fields["return_logprob"] = b"true"
        is_changed = True
    if not any(request.wants_logprobs):
        asleep = {name: v for name, v in _ASLEEP_WITHOUT_LOGPROBS.items() if name in fields}
        fields |= asleep
        is_changed = is_changed or bool(asleep)
    if input_ids is not None:
        _check_fit(request, input_ids)
        lists = [write_ids(ids) for ids in input_ids]
        fields.pop("input_ids", None)
        fields["text"] = b"[" + b",".join(lists) + b"]" if request.batch else lists[0]
        return _joined(fields, _IDS_FOR_TEXT)
    return _joined(fields, _KEYS) if is_changed else request.body


def _joined(fields: Mapping[str, bytes | Raw], keys: Mapping[str, bytes]) -> bytes:
    """An object of these fields; ``keys`` are such as are known, as they begin a member."""
    pieces: list[Any] = []
    for name, value in fields.items():
        pieces += (keys.get(name) or b",%b:" % msgspec.json.encode(name), value)
    pieces[0] = b"{" + pieces[0][1:]
    pieces.append(b"}")
    # A Raw is a buffer, which its stub keeps to itself; views of them take ten times as long.
    return b"".join(pieces)


def _check_fit(request: GenerateRequest, input_ids: Sequence[PackedIds]) -> None:
    texts = all(isinstance(prompt, TextPrompt) for prompt in request.prompts)
    if not texts or len(input_ids) != len(request.prompts):
        raise InvariantError("ids replace the text of every prompt, or of none")


def _prompts(
    given: dict[str, Raw], read_ids: Decodes[PackedIds], *, empty_allowed: bool
) -> tuple[tuple[Prompt, ...], bool]:
    kinds = [name for name in _PROMPTS if name in given]
    if not kinds:
        raise ClientError(
            "One of text, input_ids or input_embeds is needed.",
            code="missing_required_parameter",
            param="text",
        )
    if len(kinds) > 1:
        raise ClientError(
            f"Only one of {', '.join(_PROMPTS)} may be given, not both {' and '.join(kinds)}.",
            param=kinds[1],
        )
    raw = given[kinds[0]]
    if kinds[0] == "text":
        return _texts(raw)
    if kinds[0] == "input_ids":
        return _ids(raw, read_ids, empty_allowed=empty_allowed)
    return _embeds(raw)


def _texts(raw: Raw) -> tuple[tuple[Prompt, ...], bool]:
    texts = decode_field(_TEXTS, raw, "text")
    if isinstance(texts, str):
        if not texts:
            raise _empty("text", "empty_string")
        return (TextPrompt(text=texts),), False
    if not texts:
        raise _empty("text")
    for place, text in enumerate(texts):
        if not text:
            raise _empty(f"text[{place}]", "empty_string")
    return tuple(TextPrompt(text=text) for text in texts), True


def _ids(
    raw: Raw, read_ids: Decodes[PackedIds], *, empty_allowed: bool
) -> tuple[tuple[Prompt, ...], bool]:
    if not _is_nested(raw):
        packed = decode_field(read_ids, raw, "input_ids")
        if not packed and not empty_allowed:
            raise _empty("input_ids")
        return (IdsPrompt(ids=packed),), False
    lists = decode_field(_BATCH_OF_IDS, raw, "input_ids")
    for place, ids in enumerate(lists):
        if not ids and not empty_allowed:
            raise _empty(f"input_ids[{place}]")
    return tuple(IdsPrompt(ids=_packed(ids)) for ids in lists), True


def _embeds(raw: Raw) -> tuple[tuple[Prompt, ...], bool]:
    rows = decode_field(_RAWS, raw, "input_embeds")
    if not rows:
        raise _empty("input_embeds")
    batch = _is_nested(rows[0])
    return (EmbedsPrompt(),) * (len(rows) if batch else 1), batch


def _packed(ids: list[int]) -> PackedIds:
    return PackedIds(array("I", ids).tobytes())


def _is_nested(raw: Raw) -> bool:
    """Whether this array's first element is an array. Long bodies are not copied to see it."""
    head = bytes(memoryview(raw)[:64])
    return head[:1] == b"[" and head[1:].lstrip(b" \t\r\n")[:1] == b"["


def _empty(param: str, code: str = "empty_array") -> ClientError:
    return ClientError(f"{param} must not be empty.", code=code, param=param)


def _n(raw: Raw | None, prompts: int, batch: bool) -> int:
    """Samples per prompt, which must be the same for all."""
    if raw is None:
        return 1
    if bytes(memoryview(raw)[:1]) != b"[":
        return decode_field(_SAMPLING, raw, "sampling_params").n or 1
    params = decode_field(_SAMPLINGS, raw, "sampling_params")
    if not batch or len(params) != prompts:
        raise ClientError(
            f"sampling_params is a list of {len(params)} for {prompts} prompt(s); "
            "a list needs a batch of the same length.",
            param="sampling_params",
        )
    counts = {each.n or 1 for each in params}
    if len(counts) > 1:
        raise ClientError(
            "All items of sampling_params must have the same n.", param="sampling_params"
        )
    return counts.pop()


def _wants_logprobs(raw: Raw | None, prompts: int) -> tuple[bool, ...]:
    wanted: bool | tuple[bool, ...] = False
    if raw is not None:
        wanted = decode_field(_BOOLS, raw, "return_logprob")
    if isinstance(wanted, bool):
        return (wanted,) * prompts
    if len(wanted) != prompts:
        raise ClientError(
            f"return_logprob is a list of {len(wanted)} for {prompts} prompt(s).",
            param="return_logprob",
        )
    return wanted


def _rids(raw: Raw | None) -> tuple[str, ...]:
    if raw is None:
        return ()
    rids = decode_field(_TEXTS, raw, "rid")
    return (rids,) if isinstance(rids, str) else rids


def _names_session(raw: Raw | None) -> bool:
    return raw is not None and decode_field(_SESSION, raw, "session_params").get("id") is not None
