"""Threads that go round: whose turn it is, how many there are, and that they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.threads import cores
from merging.turns import Line, Step, Turns
from tests.test_chat import no_more_than

PAUSE = 0.0005


class Log:
    """Who went, in order, and how many were under way at once."""

    def __init__(self) -> None:
        self.went: list[str] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def step(self, name: str, times: int) -> Step:
        """One that goes so many times."""
        left = [times]

        def go() -> bool:
            with self.lock:
                self.went.append(name)
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(PAUSE)
            with self.lock:
                self.now -= 1
                left[0] -= 1
            return left[0] > 0

        return go


def until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not said():
        assert time.monotonic() < deadline
        time.sleep(PAUSE)


@given(st.lists(st.lists(st.integers(1, 6), max_size=4), max_size=5), st.integers(1, 4))
def test_everyone_goes_as_often_as_they_would(asked: list[list[int]], count: int) -> None:
    """Each step goes until it says that it is done, never more threads than told are at work."""
    turns, log = Turns(count), Log()

    def ask(number: int) -> None:
        steps = [log.step(f"{number}.{n}", times) for n, times in enumerate(asked[number])]
        with turns.going(steps):
            wanted = {f"{number}.{n}": times for n, times in enumerate(asked[number])}
            until(lambda: all(log.went.count(name) == many for name, many in wanted.items()))

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sum(map(sum, asked)) == len(log.went)
    assert log.most <= count
    until(lambda: turns.threads == 0)


def test_many_columns_take_no_more_turns_than_one() -> None:
    """Whoever asks six columns goes as often as whoever asks one: they alternate."""
    turns, log = Turns(1), Log()
    with (
        turns.going([log.step("long", 500) for _ in range(6)]),
        turns.going([log.step("short", 40)]),
    ):
        until(lambda: log.went.count("short") == 40)
        went = log.went[log.went.index("short") :]
    runs = [len(list(run)) for name, run in groupby(went) if name == "long"]
    assert max(runs[:-1]) == 1


def test_columns_of_one_asker_take_turns_too() -> None:
    turns, log = Turns(1), Log()
    with turns.going([log.step(name, 20) for name in "abc"]):
        until(lambda: len(log.went) == 60)
    assert log.went == list("abc") * 20


def test_left_early_nothing_goes_on() -> None:
    """On leaving no step is under way, none follows, and no thread stays."""
    before = set(threading.enumerate())
    turns, log = Turns(3), Log()
    for _ in range(20):
        with turns.going([log.step("x", 10**6) for _ in range(4)]) as gone:
            assert gone.wait(5)
        assert log.now == 0
        count = len(log.went)
        time.sleep(4 * PAUSE)
        assert len(log.went) == count
    assert no_more_than(before)
    assert turns.threads == 0


@pytest.mark.parametrize("count", [1, 2])
def test_cores_are_shared_among_threads(count: int) -> None:
    """Each thread lets torch use its share of the cores, and a lone one all of them."""
    seen: list[int] = []
    both = threading.Barrier(count)

    def go() -> bool:
        both.wait(5)
        seen.append(torch.get_num_threads())
        both.wait(5)
        return len(seen) < 4 * count

    with Turns(2).going([go] * count):
        until(lambda: len(seen) >= 4 * count)
    assert set(seen) == {max(1, cores() // count)}


def test_in_a_line_who_came_first_goes_first() -> None:
    """One at a time, and all know how many are before them; who leaves it early is no longer waited
    for, and who waits is woken."""
    line, woken = Line(), list[int]()
    stacks = [ExitStack() for _ in range(4)]
    places = [stack.enter_context(line.joined()) for stack in stacks]
    assert [before(0) for before in places] == [0, 1, 2, 3]
    stacks[1].close()
    assert [before(0) for before in places[2:]] == [1, 2]
    waits = threading.Thread(target=lambda: woken.append(places[2](60)))
    waits.start()
    stacks[0].close()
    waits.join(30)
    assert woken == [0] and places[3](0) == 1
    stacks[2].close()
    assert places[3](0) == 0
