"""Real clients against the real server, over real sockets.

Each test lets a client run its own loop (with tools, with streams, with whatever it does to history
before it sends it back) and then looks at what the router holds: every token that the worker
sampled must lie in one trajectory, as it was sampled, and nowhere else.

They need more than the other tests do, and are skipped without it::

    pip install --group clients
    SLIME_CLIENTS_NPM=DIRECTORY python -m pytest tests/clients

``SLIME_CLIENTS_NPM`` names a directory that is kept: the packages of ``node/package.json`` are
installed there by the first run, which needs Node and npm. Without it the clients for Node are left
out. pip and npm ask their registries; a test that reaches for anything but this machine fails.
"""
