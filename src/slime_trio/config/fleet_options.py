"""Settings of the fleet: who gets work, who is waited for, how long, and how often tried."""

from __future__ import annotations

from typing import Final

from slime_trio.config.kinds import (
    Option,
    at_least,
    policy,
    prefills,
    seconds,
    seconds_or_none,
    truth,
    worker,
)

__all__ = ["FLEET_OPTIONS"]

FLEET_OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        name="policy",
        flags=("--policy",),
        kind=policy,
        help="how calls are dealt to workers: a name, or the dotted path of a policy of your own",
    ),
    Option(
        name="affinity",
        flags=("--affinity",),
        kind=truth,
        help="calls of one session or routing key stay with their worker, under any policy",
    ),
    Option(
        name="max_concurrent_requests",
        flags=("--max-concurrent-requests",),
        kind=at_least(1),
        help="generating requests in flight at once; others wait",
    ),
    Option(
        name="queue_size",
        flags=("--queue-size",),
        kind=at_least(0),
        help="requests that may wait; past it 429",
    ),
    Option(
        name="queue_timeout_s",
        flags=("--queue-timeout-s",),
        kind=seconds_or_none,
        help="seconds that a request may wait before 503; 0: no limit",
    ),
    Option(
        name="request_timeout_s",
        flags=("--request-timeout-s",),
        kind=seconds_or_none,
        help="seconds that a worker may take for a generation before 504; 0: no limit",
    ),
    Option(
        name="max_attempts",
        flags=("--max-attempts",),
        kind=at_least(1),
        help="workers that are tried for a request before its answer has begun",
    ),
    Option(
        name="retry_backoff_s",
        flags=("--retry-backoff-s",),
        kind=seconds,
        help="seconds before the second attempt; twice as long before each later one",
    ),
    Option(
        name="health_check",
        flags=("--health-check",),
        kind=truth,
        help="have workers generate a token now and then, to see whether they can",
    ),
    Option(
        name="health_check_interval_s",
        flags=("--health-check-interval-s",),
        kind=seconds,
        help="seconds between two health checks of a worker",
    ),
    Option(
        name="health_check_timeout_s",
        flags=("--health-check-timeout-s",),
        kind=seconds,
        help="seconds that a health check may take",
    ),
    Option(
        name="probe_logprobs",
        flags=("--probe-logprobs",),
        kind=truth,
        help="have new workers generate a few tokens, to find out what their logprobs are of",
    ),
    Option(
        name="failure_threshold",
        flags=("--failure-threshold",),
        kind=at_least(1),
        help="failures in a row that put a worker into quarantine",
    ),
    Option(
        name="quarantine_s",
        flags=("--quarantine-s",),
        kind=seconds,
        help="longest time between two looks at a worker in quarantine; the first come sooner",
    ),
    Option(
        name="max_weight_staleness",
        flags=("--max-weight-staleness",),
        kind=at_least(0),
        help="weight versions that a worker may lag behind and still get work",
    ),
    Option(
        name="version_grace_s",
        flags=("--version-grace-s",),
        kind=seconds,
        help="seconds without a fit worker of the newest weights until older ones count as newest",
    ),
    Option(
        name="pd_disaggregation",
        flags=("--pd-disaggregation",),
        kind=truth,
        help="generate with pairs of a prefill and a decode worker",
    ),
    Option(
        name="prefill",
        flags=("--prefill",),
        kind=worker,
        repeatable=True,
        gather=prefills,
        help="a prefill worker: URL, and its bootstrap port; repeatable",
    ),
    Option(
        name="decode",
        flags=("--decode",),
        kind=worker,
        repeatable=True,
        help="a decode worker's URL; repeatable",
    ),
    Option(
        name="prefill_policy",
        flags=("--prefill-policy",),
        kind=policy,
        help="how calls are dealt to prefill workers",
    ),
    Option(
        name="decode_policy",
        flags=("--decode-policy",),
        kind=policy,
        help="how calls are dealt to decode workers",
    ),
    Option(
        name="pd_timeout_s",
        flags=("--pd-timeout-s",),
        kind=seconds_or_none,
        help="seconds that a pair of workers may take for a generation; 0: no limit",
    ),
)
"""Every setting of the fleet, in the order of the help text."""
