"""RVL, the fast lossless code of 16-bit depth images that ROS's compressedDepth offers beside png."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowodom.errors import MessageError


def decode_rvl(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Returns the (H, W) image in data packed with RVL, which begin with width and height as two uint32.

    The stream is one row of numbers: zeros to skip, values that follow, and the values as zigzag differences; each is
    written in groups of three bits, lowest first, one to a nibble whose top bit says that more follow. Nibbles fill
    little-endian 32-bit words from the top.

    Source: Wilson, "Fast Lossless Depth Image Compression" (2017).

    Raises:
        MessageError: The data end early or do not fit their own size.
    """
    if data.size < 8:
        raise MessageError(f"RVL depth is truncated: {data.size} bytes")
    width, height = (int(x) for x in data[:8].view("<u4"))
    words = data[8 : 8 + (data.size - 8) // 4 * 4].view("<u4").astype(">u4").view(np.uint8)
    size = width * height
    if not 0 < size <= 1 << 28:
        raise MessageError(f"RVL depth has the impossible size {width}x{height}")
    nibbles = np.empty(2 * words.size, dtype=np.int64)
    nibbles[0::2], nibbles[1::2] = words >> 4, words & 15
    ends = np.flatnonzero(nibbles < 8)
    starts = np.concatenate(([0], ends[:-1] + 1)) if ends.size else ends
    nibbles = nibbles[: ends[-1] + 1] if ends.size else nibbles[:0]
    place = np.arange(nibbles.size) - np.repeat(starts, ends - starts + 1)
    if place.size and place.max() > 10:
        raise MessageError("RVL depth is damaged: a number is longer than 32 bits")
    numbers = np.add.reduceat((nibbles & 7) << (3 * place), starts) if ends.size else ends
    filled = np.zeros(size, dtype=bool)
    is_value = np.zeros(numbers.size, dtype=bool)
    pixel = at = 0
    while pixel < size:
        if at + 1 >= numbers.size:
            raise MessageError(f"RVL depth is truncated: {pixel} of {size} pixels are there")
        zeros, values = int(numbers[at]), int(numbers[at + 1])
        pixel += zeros
        if pixel + values > size or at + 2 + values > numbers.size or zeros + values == 0:
            raise MessageError(f"RVL depth is truncated or damaged at pixel {pixel} of {size}")
        filled[pixel : pixel + values] = True
        is_value[at + 2 : at + 2 + values] = True
        pixel += values
        at += 2 + values
    zigzag = numbers[is_value]
    image = np.zeros(size, dtype=np.uint16)
    image[filled] = np.cumsum((zigzag >> 1) ^ -(zigzag & 1)).astype(np.uint16)
    return image.reshape(height, width)
