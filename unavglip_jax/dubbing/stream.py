"""Iterators that run beside each other: order kept, queues bounded, errors and ends passed on."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")

END = object()


def background(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, made by a thread of their own up to `depth` ahead.

    An error in `items` is raised here, in its place. When the consumer stops, so does the thread, and
    `items` is closed in it.
    """
    made: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item, error=None) -> bool:
        while not stopped.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            with closing(items):
                for item in items:
                    if not put(item):
                        return
            put(END)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            put(END, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


class Clock:
    """Seconds spent in each stage. Stages overlap, so together they exceed the time that passes."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def each(self, stage: str, items: Iterable[T]) -> Generator[T, None, None]:
        """The same items; making each is counted for the stage."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, END)
            self.add(stage, time.perf_counter() - start)
            if item is END:
                return
            yield item

    def call(self, stage: str, function: Callable[..., T], *arguments, **options) -> T:
        """The function's result; calling it is counted for the stage."""
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Counts some seconds."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
