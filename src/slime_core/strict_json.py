"""Reading JSON that strangers sent: shallowly, strictly, and with the field at fault by name.

A body is decoded one level deep into :class:`msgspec.Raw` values, so that whatever this package
does not understand travels on byte for byte (numbers keep their digits), and what it does
understand is decoded by type, in C.

What strict means here: bare ``NaN`` and ``Infinity``, lone surrogates, bytes that are not UTF-8,
a byte order mark and nesting deeper than the interpreter's recursion limit are refused. A key
that occurs twice keeps its last value, as in every worker's parser, and only that value travels
on: two readings of one body are impossible.
"""

from __future__ import annotations

import re
from typing import Final, Protocol, TypeVar

import msgspec

from slime_core.errors import ClientError

__all__ = [
    "BAD_JSON",
    "Decodes",
    "FieldTypeError",
    "decode_field",
    "decode_typed",
    "is_null",
    "parse_object",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Decodes(Protocol[T_co]):
    """What is asked of a decoder, msgspec's own or another."""

    def decode(self, data: bytes | msgspec.Raw, /) -> T_co:
        """The value. Raises what msgspec raises."""


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NULL: Final = msgspec.Raw(b"null")
_PLACE: Final = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
# How msgspec words a broken limit: Expected `int` >= 0, Expected `array` of length >= 1.
_LIMIT: Final = re.compile(r"`(int|float|array|str|object)` (?:of length )?([<>]=)")
_LIMIT_CODES: Final = {
    ("int", ">="): "integer_below_min_value",
    ("int", "<="): "integer_above_max_value",
    ("float", ">="): "decimal_below_min_value",
    ("float", "<="): "decimal_above_max_value",
    ("array", ">="): "empty_array",
    ("array", "<="): "array_above_max_length",
    ("str", "<="): "string_above_max_length",
    ("object", "<="): "object_above_max_properties",
}
BAD_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for what is no JSON, or none that it can read."""


class FieldTypeError(ValueError):
    """A value is not of the type asked for. ``path`` tells where below it, such as ``[3]``."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    @property
    def code(self) -> str:
        """OpenAI's word for it."""
        found = _LIMIT.search(self.message)
        return _LIMIT_CODES.get((found[1], found[2]), "invalid_value") if found else "invalid_type"


def decode_typed(decoder: Decodes[T], data: bytes | msgspec.Raw) -> T:
    """``data`` by ``decoder``'s type. Raises :class:`FieldTypeError`, and nothing else."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _type_error(error) from None
    except BAD_JSON as error:
        raise FieldTypeError(_syntax_message(error), "") from None


def decode_field(decoder: Decodes[T], raw: msgspec.Raw, param: str) -> T:
    """One field of a client's request. Raises :class:`ClientError` with the path of the fault."""
    try:
        return decode_typed(decoder, raw)
    except FieldTypeError as error:
        word = "type" if error.code == "invalid_type" else "value"
        raise ClientError(
            f"Invalid {word} for '{param}{error.path}': {error.message}.",
            code=error.code,
            param=param + error.path,
        ) from None


def is_null(raw: msgspec.Raw) -> bool:
    """Whether the value is JSON's ``null``."""
    return raw == _NULL


def parse_object(body: bytes) -> dict[str, msgspec.Raw]:
    """A request's body as fields. Raises :class:`ClientError` without ``param``: there is none."""
    try:
        if not body.isascii():
            # Values that are skipped are not looked into, and this body will be sent on.
            str(body, "utf-8")
        return _FIELDS.decode(body)
    except msgspec.ValidationError as error:
        raise ClientError(f"The body must be a JSON object: {error}", code="invalid_type") from None
    except BAD_JSON as error:
        raise ClientError(
            f"We could not parse the JSON body of your request: {_syntax_message(error)}",
            code="invalid_json",
        ) from None


def _type_error(error: msgspec.ValidationError) -> FieldTypeError:
    words = str(error)
    place = _PLACE.search(words)
    if place is None:
        return FieldTypeError(words, "")
    return FieldTypeError(words[: place.start()], place["path"].replace("[...]", ""))


def _syntax_message(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not valid UTF-8"
    return str(error)
