"""Settings of what is between the router and others: keys, limits, TLS, logs and traces."""

from __future__ import annotations

from typing import Final

from slime_trio.config.kinds import (
    Option,
    at_least,
    network,
    seconds,
    secret,
    truth,
    worker_pattern,
)

__all__ = ["NETWORK_OPTIONS"]

NETWORK_OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        name="admin_key",
        flags=("--admin-key",),
        kind=secret,
        secret=True,
        help="the key of the control plane; better given by its variable",
    ),
    Option(
        name="api_key",
        flags=("--api-key",),
        kind=secret,
        repeatable=True,
        secret=True,
        help="a tenant's key; repeatable, each its own tenant; better given by its variable",
    ),
    Option(
        name="worker_api_key",
        flags=("--worker-api-key",),
        kind=secret,
        secret=True,
        help="the key that workers ask for (SGLang's --api-key)",
    ),
    Option(
        name="allow_worker",
        flags=("--allow-worker",),
        kind=worker_pattern,
        repeatable=True,
        help="hosts or networks of workers that anybody may register, such as 10.0.0.0/8 or *.lan",
    ),
    Option(
        name="trusted_proxy",
        flags=("--trusted-proxy",),
        kind=network,
        repeatable=True,
        help="networks of proxies whose forwarding headers are believed",
    ),
    Option(
        name="max_header_kb",
        flags=("--max-header-kb",),
        kind=at_least(1),
        help="KiB of a request's head",
    ),
    Option(
        name="header_timeout_s",
        flags=("--header-timeout-s",),
        kind=seconds,
        help="seconds that a request's head may take from its first byte on",
    ),
    Option(
        name="body_timeout_s",
        flags=("--body-timeout-s",),
        kind=seconds,
        help="seconds that a request's body may pause while it arrives",
    ),
    Option(
        name="max_connections",
        flags=("--max-connections",),
        kind=at_least(1),
        help="connections of clients at once",
    ),
    Option(
        name="max_connections_per_peer",
        flags=("--max-connections-per-peer",),
        kind=at_least(1),
        help="connections from one address at once",
    ),
    Option(
        name="max_json_depth",
        flags=("--max-json-depth",),
        kind=at_least(8),
        help="how deep a request's JSON may be nested",
    ),
    Option(
        name="tls_cert",
        flags=("--tls-cert",),
        kind=str,
        help="certificate chain to serve HTTPS with, PEM",
    ),
    Option(
        name="tls_key",
        flags=("--tls-key",),
        kind=str,
        help="its private key, PEM",
    ),
    Option(
        name="tls_client_ca",
        flags=("--tls-client-ca",),
        kind=str,
        help="authorities whose certificates clients must show, PEM",
    ),
    Option(
        name="worker_ca",
        flags=("--worker-ca",),
        kind=str,
        help="authorities of the workers' certificates, PEM (default: the system's)",
    ),
    Option(
        name="worker_cert",
        flags=("--worker-cert",),
        kind=str,
        help="certificate to show to workers, PEM",
    ),
    Option(
        name="worker_key",
        flags=("--worker-key",),
        kind=str,
        help="its private key, PEM",
    ),
    Option(
        name="log_format",
        flags=("--log-format",),
        kind=str,
        choices=("console", "json"),
        help="how log lines are written",
    ),
    Option(
        name="otlp_endpoint",
        flags=("--otlp-endpoint",),
        kind=str,
        help="where OpenTelemetry traces are sent (needs the extra `otel`)",
    ),
    Option(
        name="verbose",
        flags=("--verbose",),
        kind=truth,
        help="log every request and call",
    ),
)
"""Every setting of keys, limits, TLS and reporting, in the order of the help text."""
