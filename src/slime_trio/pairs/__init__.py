"""Prefill/decode disaggregation as a mode of the relay: two workers serve one request.

:func:`exchange` is used where a request was placed on a pair; what it gives looks like one worker's
answer. How requests are addressed and answers merged is in :mod:`slime_core.disaggregation`.
"""

from slime_trio.pairs.errors import PairError
from slime_trio.pairs.exchange import PairExchange
from slime_trio.pairs.information import pair_information
from slime_trio.pairs.workers import PrefillWorker, generates

exchange = PairExchange
"""How it is called where a request is sent."""

__all__ = [
    "PairError",
    "PairExchange",
    "PrefillWorker",
    "exchange",
    "generates",
    "pair_information",
]
