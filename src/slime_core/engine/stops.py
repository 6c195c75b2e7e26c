"""When an answer is over, checked after each token in SGLang's order.

The limit comes first: an end token in the last allowed place finishes with ``length``. Then end
and stop tokens, which ``ignore_eos`` switches off *both* (SGLang's rule), then stop strings, then
stop expressions. A stop string may begin and end inside tokens; it is looked for in bytes, where
text that is not yet complete cannot hide or feign it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from slime_core.engine.generation import Finish, Length, Stop
from slime_core.engine.sampling_params import SamplingParams
from slime_core.vocabulary import Vocabulary

__all__ = ["finish_after", "may_be_stopping", "shown_text"]


def finish_after(
    output_ids: Sequence[int],
    params: SamplingParams,
    limit: int,
    end_ids: frozenset[int],
    vocabulary: Vocabulary,
) -> Finish | None:
    """Why the answer ends with the last of ``output_ids``, or ``None``.

    To be called after every token: it looks only at what the last one can have completed.
    """
    if len(output_ids) >= limit:
        return Length(limit)
    last = output_ids[-1]
    if not params.ignore_eos and (last in end_ids or last in params.stop_token_ids):
        return Stop(last)
    if params.stop:
        # Every token has at least one byte, so this many tokens hold any string that ends in the
        # last one.
        window = max(len(text.encode()) for text in params.stop) + 1
        tail = vocabulary.decode_bytes(output_ids[-window:], skip_special=False, at_start=False)
        for text in params.stop:
            if text.encode() in tail:
                return Stop(text)
    if params.stop_regex:
        whole = vocabulary.decode(output_ids, skip_special=False, at_start=False)
        for pattern in params.stop_regex:
            if re.search(pattern, whole):
                return Stop(pattern)
    return None


def shown_text(
    output_ids: Sequence[int], finish: Finish, params: SamplingParams, vocabulary: Vocabulary
) -> str:
    """The text of a finished answer: without what made it stop, unless ``no_stop_trim``.

    A stop string takes everything behind its first occurrence with it.
    """
    matched = finish.matched if isinstance(finish, Stop) and not params.no_stop_trim else None
    ids = output_ids[:-1] if isinstance(matched, int) else output_ids
    text = vocabulary.decode(ids, skip_special=params.skip_special_tokens, at_start=False)
    if isinstance(matched, str) and matched in params.stop:
        return text.partition(matched)[0]
    return text


def may_be_stopping(
    output_ids: Sequence[int], params: SamplingParams, vocabulary: Vocabulary
) -> bool:
    """Whether the output ends with the beginning of a stop string: SGLang then holds the chunk."""
    if not params.stop:
        return False
    stops = [text.encode() for text in params.stop]
    window = max(map(len, stops))
    tail = vocabulary.decode_bytes(output_ids[-window:], skip_special=False, at_start=False)
    return any(tail.endswith(stop[:length]) for stop in stops for length in range(1, len(stop)))
