"""Prefill and decode on two workers: what a pair is sent, and one answer made of its two.

Requests: :mod:`~slime_core.disaggregation.bootstrap`. Whole answers:
:mod:`~slime_core.disaggregation.merging`. Streams: :mod:`~slime_core.disaggregation.streaming`.
What both kinds of workers tell of themselves: :mod:`~slime_core.disaggregation.information`.
"""

from slime_core.disaggregation.bootstrap import (
    GENERATION_PATHS,
    ROOM_MAX,
    PairRequest,
    Wanted,
    draw_rooms,
    read_pair_request,
)
from slime_core.disaggregation.information import merge_server_info
from slime_core.disaggregation.merging import Abort, Endings, endings, merge_answers
from slime_core.disaggregation.streaming import StreamMerger

__all__ = [
    "GENERATION_PATHS",
    "ROOM_MAX",
    "Abort",
    "Endings",
    "PairRequest",
    "StreamMerger",
    "Wanted",
    "draw_rooms",
    "endings",
    "merge_answers",
    "merge_server_info",
    "read_pair_request",
]
