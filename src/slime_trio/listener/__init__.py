"""The router's own HTTP/1.1 listener: hot paths go straight to the relay, the rest to Quart."""

__all__: list[str] = []
