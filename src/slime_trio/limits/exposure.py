"""Whether strangers can reach what nothing guards."""

from __future__ import annotations

import ipaddress

from slime_trio.config import Settings

__all__ = ["exposure"]


def exposure(settings: Settings) -> str | None:
    """One plain sentence for an operator whose router listens to others without keys, or ``None``.

    Certificates that clients must show guard as keys do.
    """
    open_doors = []
    if not settings.api_key:
        open_doors.append(("--api-key", "generate and read every captured trajectory"))
    if settings.admin_key is None and not settings.api_key:
        open_doors.append(("--admin-key", "pause, update and remove workers"))
    if _is_loopback(settings.host) or settings.tls_client_ca is not None or not open_doors:
        return None
    flags = " and ".join(flag for flag, _ in open_doors)
    deeds = ", ".join(deed for _, deed in open_doors)
    return (
        f"warning: whoever reaches {settings.host} can {deeds}: set {flags}, "
        "or listen on --host 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
