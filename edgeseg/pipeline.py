"""Working ahead of whoever takes the results: bounded, in order, never holding a finished result back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")


def pipelined(work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map(work, items)`, with at most `ahead` items taken beyond the result being given out.

    `items` is read in a thread of its own: a camera that is slow, or stops, holds back no result that is done. What
    reading or working raises is raised in its turn. Leaving early stops the reading after the item being waited for.
    """
    from concurrent.futures import ThreadPoolExecutor  # 7 ms of import that single frames do without

    turns: queue.Queue[Future[R] | BaseException | None] = queue.Queue()
    room = threading.Semaphore(ahead + 1)
    left = threading.Event()

    def read(pool: ThreadPoolExecutor) -> None:
        source = iter(items)
        try:
            while True:
                room.acquire()
                if left.is_set():
                    return
                item = next(source)
                if left.is_set():
                    return
                turns.put(pool.submit(work, item))
        except StopIteration:
            turns.put(None)
        except BaseException as error:  # carried over to the thread that takes the results
            turns.put(error)

    pool = ThreadPoolExecutor(ahead, "edgeseg-map")
    # A daemon, since it may be waiting for a camera when the program wants to end.
    threading.Thread(target=read, args=(pool,), name="edgeseg-read", daemon=True).start()
    try:
        while (turn := turns.get()) is not None:
            if isinstance(turn, BaseException):
                raise turn
            yield turn.result()
            room.release()
    finally:
        left.set()
        room.release()
        pool.shutdown(wait=True, cancel_futures=True)
