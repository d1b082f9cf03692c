"""What a process that runs the odometry sets once, at its start; the libraries below never do."""

from __future__ import annotations

import contextlib
import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of parameters in glibc's malloc.h."""

KEPT = 1 << 28
"""Bytes of freed memory that the process keeps at hand."""


def prepare(threads: int) -> None:
    """Suits the process to a thousand small tensor operations a frame.

    Torch's threads wait for each other actively, so one is best on few or shared cores. And the C library gives every
    array above 128 KiB back to the system at once, to fetch it again, page by page, for the next: a fifth of the time
    of a frame. Where it is glibc, it is told to keep them.

    Args:
        threads: CPU threads of torch.
    """
    torch.set_num_threads(threads)
    with contextlib.suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, KEPT)
        allocator.mallopt(_M_TRIM_THRESHOLD, KEPT)
