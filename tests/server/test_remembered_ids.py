"""Long prompts by ids are read and written with what the router remembers of earlier ones."""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from slime_core.known_ids import KnownIds
from slime_core.long_lists import IdList
from slime_core.types import PackedIds
from slime_trio.endpoints import generate
from tests.server.relay_support import Sink, answering, inbound, relay_router

PROMPT: Final = [100_000 + place for place in range(4_000)]


class _Counting:
    """A decoder that notes how much it is given."""

    def __init__(self) -> None:
        self.read = 0

    def decode(self, data: bytes | Raw, /) -> PackedIds:
        self.read += len(bytes(data))
        return IdList().decode(data)


async def test_a_prompt_that_goes_on_from_an_earlier_one_is_read_from_there_on() -> None:
    async with relay_router(answering) as (router, _):
        decoder = _Counting()
        router.shared.known_ids = KnownIds(decoder)  # type: ignore[misc]
        await generate(router, inbound("/generate", {"input_ids": PROMPT}, []), Sink())
        first = decoder.read
        await generate(router, inbound("/generate", {"input_ids": [*PROMPT, 7]}, []), Sink())
        assert first > 7 * len(PROMPT)
        assert decoder.read - first < 100


async def test_texts_of_prompts_are_kept_with_their_router() -> None:
    async with relay_router(answering) as (router, _):
        await generate(router, inbound("/generate", {"text": "word " * 4_000}, []), Sink())
        assert router.shared.id_texts.held > 0
