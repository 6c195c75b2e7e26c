"""Every adversarial case of exact token capture, over real vocabularies and families' templates.

:mod:`tests.hard_cases.rows` is the table of the cases, and what shows each of them.
"""
