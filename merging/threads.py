"""Many small pieces of work on all cores; it knows no tensors, only torch's own threads."""

import ctypes
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from merging import container

EVERY = 0.1
"""Seconds between two signs of progress."""
WAITING = 8
"""Items a thread, at most, that are done or under way before their results are taken."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Settings of mallopt, as glibc's malloc.h numbers them."""
ARENAS = 4
"""Heaps for all threads. By default each of a class's dozens has one of eight times the cores, and
what models leave behind in each of them came to 300 MB after a hundred merges, to 75 with these."""


def cores() -> int:
    """How many threads merge and chat may use together, decided here for both."""
    every = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    return math.ceil(min(mine, container.cores()))


@contextmanager
def pooled(device: str) -> Iterator[ThreadPoolExecutor]:
    """One thread a core, each on its own items; a GPU is driven by one."""
    keep_freed_memory()
    count = cores() if device == "cpu" else 1
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)  # this thread waits, and must not fight the workers
    with ThreadPoolExecutor(count, initializer=_enter_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # a worker's setting is later threads' default


def over(
    pool: ThreadPoolExecutor,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    take: Callable[[Any], None],
) -> Iterator[int]:
    """Run `function` over all items, on all threads, and `take` its results in the items' order.

    Yields how many are taken, now and then and at the end; what either raises is raised here.
    Threads fetch their items themselves: to be woken for each of them, the caller would take the
    interpreter from those that work.
    """
    todo, taken, early, turn = iter(enumerate(items)), 0, dict[int, Any](), threading.Lock()
    threads = min(cores(), len(items))
    room = threading.Semaphore(WAITING * threads)

    def work() -> None:
        nonlocal taken
        try:
            while room.acquire() and (job := next(todo, None)):
                early[job[0]] = function(job[1])
                with turn:
                    while taken in early:
                        take(early.pop(taken))
                        taken += 1
                        room.release()
        finally:
            deque(todo, 0)  # if this one failed, no more is begun
            room.release(threads)

    tasks = [pool.submit(work) for _ in range(threads)]
    try:
        while wait(tasks, EVERY).not_done:
            yield taken
        for task in tasks:
            task.result()
        yield taken
    finally:
        deque(todo, 0)


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what blocks free for the blocks that follow.

    It would give buffers of a megabyte back to the system at once, and zeroing fresh pages takes
    five times as long as the arithmetic does. At most 64 MB a heap stay, and heaps are bounded only
    if this comes before there are many threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)
        mallopt(M_ARENA_MAX, ARENAS)


def _enter_thread() -> None:
    torch.set_num_threads(1)  # blocks are the parallelism
    torch.set_grad_enabled(False)  # a thread's own mode, and this thread ends with the pool
