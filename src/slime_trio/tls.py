"""TLS and mutual TLS, towards clients and towards workers. At least version 1.2, everywhere.

What cannot work is said at start, with the flag that is to blame: files that cannot be read, that
hold no certificate or key, a key that belongs to another certificate, a key without a certificate.
"""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from slime_trio.config import ConfigurationError, Settings

__all__ = ["WorkerTls", "server_context"]


class WorkerTls:
    """How the router meets its workers over TLS: the one context of requests, probes and control.

    Calling it gives the context: certificates are verified, against ``--worker-ca`` or else the
    system's authorities, and host names checked. Raises :class:`ConfigurationError` when made.
    """

    def __init__(self, settings: Settings) -> None:
        own = (settings.worker_ca, settings.worker_cert, settings.worker_key)
        self._context = None if own == (None, None, None) else _worker_context(settings)

    def __call__(self) -> ssl.SSLContext:
        """The context."""
        return self._context or _system_context()


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """How clients are met over TLS; ``None`` if no certificate is named.

    Only those with a certificate of their own are let in if ``--tls-client-ca`` is. Raises
    :class:`ConfigurationError`.
    """
    if settings.tls_cert is None:
        for flag, value in (
            ("--tls-key", settings.tls_key),
            ("--tls-client-ca", settings.tls_client_ca),
        ):
            if value is not None:
                raise ConfigurationError(f"{flag} is of no use without --tls-cert")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    # No HTTP/2: its limits would be others.
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, "--tls-cert", settings.tls_cert, "--tls-key", settings.tls_key)
    if settings.tls_client_ca is not None:
        _load_authorities(context, "--tls-client-ca", settings.tls_client_ca)
        context.verify_mode = ssl.VerifyMode.CERT_REQUIRED
    return context


@functools.cache
def _system_context() -> ssl.SSLContext:
    """Believes the system's authorities. Reading them all takes 20 ms, so it is done once."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _worker_context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.worker_ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, "--worker-ca", settings.worker_ca)
    if settings.worker_cert is not None:
        _load_chain(
            context, "--worker-cert", settings.worker_cert, "--worker-key", settings.worker_key
        )
    elif settings.worker_key is not None:
        raise ConfigurationError("--worker-key is of no use without --worker-cert")
    return context


def _load_authorities(context: ssl.SSLContext, flag: str, path: str) -> None:
    _readable(flag, path)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"{flag}: {path} holds no certificate in PEM") from error


def _load_chain(
    context: ssl.SSLContext, cert_flag: str, cert: str, key_flag: str, key: str | None
) -> None:
    _readable(cert_flag, cert)
    if key is not None:
        _readable(key_flag, key)
    try:
        # A key with a password would have OpenSSL ask for it on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"{cert_flag}, {key_flag}: not a certificate chain and its own key in PEM, "
            "without a password"
        ) from error


def _readable(flag: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{flag}: {path}: {error.strerror}") from error
