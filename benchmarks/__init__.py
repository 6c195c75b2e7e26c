"""Measurements behind the claims: ``python -m benchmarks`` lists them, each prints a table."""
