"""Fuzzing of every decoder: what strangers send, altered, against what a decoder may raise.

``mutate`` alters; ``core_targets`` and ``shell_targets`` hold one function for each decoder, which
makes one input from a generator and checks what became of it; ``targets`` runs them. The tests run
a fixed corpus; ``python -m tests.fuzzing --seconds 60`` goes on with fresh seeds.
"""
