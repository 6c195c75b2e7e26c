"""What the shell knows of workers beside their state."""

from __future__ import annotations

import itertools
from math import inf

from slime_core.types import WorkerUrl
from slime_trio.worker_book import WorkerBook

ONE, TWO = WorkerUrl("http://one:1"), WorkerUrl("http://two:1")


def _book(default_key: str | None = None) -> WorkerBook:
    numbers = itertools.count()
    return WorkerBook(lambda: f"id{next(numbers)}", default_key=default_key)


def test_a_worker_keeps_its_id_and_is_found_by_it() -> None:
    book = _book()
    first = book.id_of(ONE)
    assert book.id_of(TWO) != first
    book.forget(ONE)
    assert book.id_of(ONE) == first
    assert book.url_of(first) == ONE
    assert book.url_of("id99") is None


def test_ids_are_remembered_up_to_a_bound() -> None:
    book = _book()
    first = book.id_of(ONE)
    for number in range(5000):
        book.id_of(WorkerUrl(f"http://w{number}:1"))
    assert book.url_of(first) is None
    assert repr(book) == "<WorkerBook of 4096>"


def test_a_worker_s_own_key_goes_before_that_of_all() -> None:
    book = _book("common")
    book.set_key(ONE, "own")
    assert book.authorization(ONE) == [(b"authorization", b"Bearer own")]
    assert book.authorization(TWO) == [(b"authorization", b"Bearer common")]
    book.set_key(ONE, None)
    assert book.authorization(ONE) == [(b"authorization", b"Bearer common")]
    assert _book().authorization(ONE) == []


def test_keys_and_answers_go_with_the_worker() -> None:
    book = _book()
    book.set_key(ONE, "own")
    book.note_answer(ONE, 3.0)
    assert (book.key_of(ONE), book.answered_at(ONE)) == ("own", 3.0)
    book.forget(ONE)
    assert (book.key_of(ONE), book.answered_at(ONE)) == (None, -inf)


def test_no_key_is_shown() -> None:
    book = _book("common")
    book.set_key(ONE, "own")
    assert "own" not in repr(book)
    assert "common" not in repr(book)
