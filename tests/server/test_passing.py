"""What the router reads of a body that it passes through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slime_trio.passing import rids_of

LONG = list(range(1000))


@pytest.mark.parametrize(
    ("body", "rids"),
    [
        ({"input_ids": LONG, "rid": "mine"}, ("mine",)),
        ({"rid": ["one", "two"], "input_ids": [LONG, LONG]}, ("one", "two")),
        ({"x": [{"input_ids": LONG}], "rid": "mine"}, ("mine",)),
        ({"input_ids": LONG}, ()),
        ({"input_ids": LONG, "rid": 7}, ()),
        ([], ()),
    ],
)
def test_the_names_that_a_client_gave_are_found_wherever_its_ids_stand(
    body: Any, rids: tuple[str, ...]
) -> None:
    assert rids_of(json.dumps(body).encode()) == rids
    assert rids_of(json.dumps(body, separators=(",", ":")).encode()) == rids
