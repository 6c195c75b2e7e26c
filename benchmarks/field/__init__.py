"""This project's router among others: the parts of ``python -m benchmarks.run``.

``native`` holds the load generator and the canned worker, ``canned`` what they send and say,
``peers`` the routers and how each is started (``running``), ``sampling`` how they are measured side
by side, ``served_cells`` and ``scale_cells`` what is measured, ``outcome`` the goals.
"""
