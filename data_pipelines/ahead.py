# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead in a thread, and an eye on it: who waits too long is told for what, and then stopped.

A file system that hangs raises nothing: a read simply never returns, and with it every host of the run.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain

from data_pipelines.errors import StalledError

_WARNINGS = 10  # warnings until the time limit
_LISTED = 4  # reads that a message names

logger = logging.getLogger(__name__)

# What each thread of this process is reading, and since when.
_reads: dict[int, tuple[str, float]] = {}


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Notes that this thread reads `what`, for the messages below."""
    _reads[threading.get_ident()] = what, time.monotonic()
    try:
        yield
    finally:
        del _reads[threading.get_ident()]


def slow_reads(seconds: float = 0.0) -> str:
    """The reads of this process that have lasted `seconds` or longer, the slowest first; "" if none has."""
    now = time.monotonic()
    found = sorted((begin, what) for what, begin in list(_reads.values()) if now - begin >= seconds)
    return ", ".join(f"{what} (for {now - begin:.0f} s)" for begin, what in found[:_LISTED])


def watch_reads(seconds: float) -> None:
    """Warns every `seconds` about reads that last longer: for worker processes, which nobody else sees."""

    def loop():
        while True:
            time.sleep(seconds)
            if found := slow_reads(seconds):
                logger.warning(
                    "worker process %d on %s still reads %s", os.getpid(), socket.gethostname(), found
                )

    threading.Thread(target=loop, daemon=True, name="watch-reads").start()


class Ahead(grain.IterDataset):
    """Elements of another dataset, made ahead by a thread.

    Args:
      parent: the dataset.
      count: elements made ahead; 0 makes each one when it is asked for.
      timeout: seconds that one may take before the iterator raises; it warns ten times on the way. 0: for
        ever, without a word.
      workers: worker processes behind it, for the message.
    """

    def __init__(self, parent: grain.IterDataset, *, count: int, timeout: float = 0.0, workers: int = 0):
        super().__init__(parent)
        self.count, self.timeout, self.workers = count, timeout, workers

    def __iter__(self) -> "AheadIterator":
        return AheadIterator(iter(self._parent), self)


class AheadIterator(grain.DatasetIterator):
    """See `Ahead`. Its state is that of the parent behind the last element handed out."""

    def __init__(self, parent: grain.DatasetIterator, dataset: Ahead):
        super().__init__(parent)
        self._dataset = dataset
        self._state = parent.get_state()
        self._thread: threading.Thread | None = None
        self._delivered = 0

    def start_prefetch(self) -> None:
        """Starts the thread."""
        if self._thread is None:
            self._stopped = threading.Event()
            self._asked = threading.Semaphore(self._dataset.count)
            self._done: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue()
            self._thread = threading.Thread(target=self._work, daemon=True, name="batches-ahead")
            self._thread.start()

    def _work(self) -> None:
        try:
            while True:
                self._asked.acquire()
                if self._stopped.is_set():
                    return
                element = next(self._parent)
                self._done.put((element, self._parent.get_state(), None))
        except BaseException as error:  # to be raised where somebody listens
            self._done.put((None, None, error))

    def __next__(self) -> Any:
        """The next element.

        Raises:
          StalledError: none came within the time limit; says what is being read. The iterator is of no more
            use, and the threads that hang keep Python from ending: leave by `os._exit`.
        """
        self.start_prefetch()
        self._asked.release()
        timeout, begin = self._dataset.timeout, time.monotonic()
        while True:
            try:
                element, state, error = self._done.get(timeout=timeout / _WARNINGS if timeout else None)
                break
            except queue.Empty:
                waited = time.monotonic() - begin
                message = self._message(waited)
                if waited >= timeout * (1 - 1e-6):
                    raise StalledError(message) from None
                logger.warning("%s", message)
        if error is not None:
            self._stop()
            raise error
        self._state = state
        self._delivered += 1
        return element

    def _message(self, waited: float) -> str:
        if self._dataset.workers:
            alive = len(multiprocessing.active_children())
            what = (
                f"{self._dataset.workers} worker processes, {alive} alive, make them and say what they read"
            )
        else:
            what = f"being read: {slow_reads() or 'no record'}"
        return (
            f"the data of host {socket.gethostname()} stands still: no batch for {waited:.0f} s, after "
            f"{self._delivered} in this run; {what}. Remedy: look at the storage of these files and at the "
            "memory of the host; if they are only slow, raise config.data.timeout "
            f"({self._dataset.timeout:g} s), config.data.workers or config.data.threads"
        )

    def _stop(self) -> None:
        if self._thread is not None:
            self._stopped.set()
            self._asked.release()
            self._thread.join()
            self._thread = None

    def get_state(self) -> Any:
        return self._state

    def set_state(self, state: Any) -> None:
        self._stop()
        self._parent.set_state(state)
        self._state = self._parent.get_state()

    def close(self) -> None:
        """Ends the thread."""
        self._stop()
        self._parent.close()
