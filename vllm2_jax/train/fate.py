# SPDX-License-Identifier: Apache-2.0
"""All processes of a run end when one of them fails, and say which one and why.

A process that meets an error leaves; the others wait for it inside a collective, where nothing reaches them,
until the runtime notices minutes later that it is gone. So an error is posted where all processes can see it
(the key-value store of `jax.distributed`, which every multi-process run has), and a thread in each looks
there.
"""

import contextlib
import json
import logging as python_logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from absl import logging
from jax._src import distributed  # the client of the store has no public name in jax 0.10

_FOLDER = "vllm2_jax/failed/"
_LOOK = 0.5  # seconds between two looks
_GRACE = 5.0  # seconds in which a process may still end by itself: it may be failing too, or saving
_LINGER = 5.0  # seconds that process 0, where the store lives, stays longer


class PeerError(RuntimeError):
    """Another process of the run has failed; what this one met is a consequence."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def shared(code: Callable[[BaseException], int]) -> Iterator[None]:
    """Posts an error that leaves the `with` block, and ends this process soon after another one has posted.

    Args:
      code: error -> exit code, which the other processes end with as well.

    Raises:
      PeerError: instead of an error that came after that of another process.
    """
    client = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        yield
        return
    done = threading.Event()
    threading.Thread(target=_look, args=(client, done), daemon=True, name="fate").start()
    try:
        yield
    except BaseException as error:
        found = _found(client)
        if found is not None:
            raise PeerError(*found) from error
        post = {"host": socket.gethostname(), "text": _first_line(error), "code": code(error)}
        # A store that is gone has ended, or will end, the others as well.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(f"{_FOLDER}{jax.process_index()}", json.dumps(post), allow_overwrite=True)
        raise
    finally:
        done.set()


def leave(code: int) -> NoReturn:
    """Ends this process at once. To be called where an error ends a run.

    Python would join threads that hang in a read, and `jax.distributed` wait minutes for the others.
    """
    for handler in python_logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_count() > 1 and jax.process_index() == 0:
        time.sleep(_GRACE + _LINGER)
    os._exit(code)


def _look(client, done: threading.Event) -> None:
    """Waits until another process has posted an error, or this one is done."""
    while not done.wait(_LOOK):
        if found := _found(client):
            logging.error("%s", found[0])
            if not done.wait(_GRACE):
                print(found[0], file=sys.stderr)
                leave(found[1])
            return


def _found(client) -> tuple[str, int] | None:
    """What another process has posted, as a message and an exit code."""
    try:
        posts = client.key_value_dir_get(_FOLDER)
    except jax.errors.JaxRuntimeError:  # the store is gone, and the runtime is about to end this process
        return None
    for key, value in posts:
        post, number = json.loads(value), key.rpartition("/")[2]
        if number != str(jax.process_index()):
            name = f"process {number} of {jax.process_count()} on host {post['host']}"
            return f"ended with {name}: {post['text']}", post["code"]
    return None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:2000]}"
