"""Fuzzing of every decoder: what strangers send, altered, against what a decoder may raise.

``goldens`` holds sound input, ``mutate`` alters it; a target, one function for each decoder, makes
one input from a generator and checks what became of it (``core_targets`` and ``shell_targets`` name
them all); ``targets`` runs them. The tests run a fixed corpus; ``python -m tests.fuzzing
--seconds 60`` goes on with fresh seeds.
"""
