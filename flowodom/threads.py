"""Keeps small tensor work on one processor thread.

Torch splits every operation on more than some ten thousand numbers over its threads, which wait for each other
actively. Fitting a motion, or rendering a small image, is a thousand operations that each take microseconds: splitting
them gains nothing on idle cores, and on shared ones everything is tens of times slower.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_before = 1


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Within it torch uses one thread; may be nested and entered from several threads.

    Args:
        when: Does nothing when False.
    """
    global _inside, _before
    if not when:
        yield
        return
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)
