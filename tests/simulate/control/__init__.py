"""The control plane: trainers that speak to all workers through the router, and what must follow.

What is asked for (:mod:`errands`) is drawn before the run, carried out over HTTP by a
:class:`Director`, written down (:mod:`records`) and judged (:mod:`watching`, :mod:`rules`).
"""
