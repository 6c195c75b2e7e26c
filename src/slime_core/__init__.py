"""The pure core of Slime Router: state, decisions and framing, without I/O.

Nothing in this package awaits, reads a clock, draws random numbers, logs or touches the
system: time, ids and random numbers are arguments. ``tests/core/test_purity.py`` enforces it.
"""
