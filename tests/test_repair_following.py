"""Work that follows other work: in order, all of it, and never an error lost."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.repair.applying.following import following


@pytest.mark.parametrize("aside", [False, True])
@given(items=st.lists(st.integers(), max_size=200))
def test_the_work_is_done_on_every_item_in_order(items: list[int], *, aside: bool) -> None:
    done: list[int] = []
    with following(done.append, aside=aside) as follower:
        for item in items:
            follower.take(item)
        follower.finish()
        assert done == items


@pytest.mark.parametrize("aside", [False, True])
def test_it_is_done_by_another_thread_where_that_was_asked_for(*, aside: bool) -> None:
    threads: set[int] = set()

    def work(_: int) -> None:
        threads.add(threading.get_ident())

    with following(work, aside=aside) as follower:
        follower.take(0)
        follower.finish()
    assert (threads == {threading.get_ident()}) is not aside


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("broken", [0, 5, 150, 199])
def test_an_error_comes_out_and_everything_before_it_was_done(broken: int, *, aside: bool) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == broken:
            raise ValueError(item)
        done.append(item)

    def all_of_it() -> None:
        with following(work, aside=aside) as follower:
            for item in range(200):
                follower.take(item)
            follower.finish()

    with pytest.raises(ValueError, match=f"^{broken}$"):
        all_of_it()
    assert done[:broken] == list(range(broken))


def test_the_follower_is_never_far_behind() -> None:
    taken = 0
    lag: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.0001)
        lag.append(taken - item)

    with following(work, aside=True) as follower:
        for item in range(500):
            taken = item
            follower.take(item)
        follower.finish()
    assert 0 <= min(lag) <= max(lag) <= 6 * 16  # four batches wait, one is worked on, one is being filled
