"""Prefill and decode in the simulated world: pairs of workers behind the real shell."""
