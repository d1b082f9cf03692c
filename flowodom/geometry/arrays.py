"""One function for tensors and NumPy arrays alike.

Of a few numbers NumPy makes shorter work than torch, whose calls cost five times as much; of many, on a GPU or where
derivatives are wanted, torch does. What is written here with the operators that both have need be written once only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", Tensor, NDArray[Any])
"""A tensor or a NumPy array."""

Function = TypeVar("Function", bound=Callable[..., Any])


def library(values: Tensor | NDArray[Any]) -> Any:
    """Returns the module, torch or NumPy, to which values belong."""
    return torch if isinstance(values, Tensor) else np


def like(constant: Tensor, values: Array) -> Array:
    """Returns a constant on the processor as values of the same kind, type and device as others."""
    return constant.to(values) if isinstance(values, Tensor) else constant.numpy().astype(values.dtype, copy=False)


def zeros_like(values: Array, *size: int) -> Array:
    """Returns zeros of a size, of the same kind, type and device as values."""
    return values.new_zeros(size) if isinstance(values, Tensor) else np.zeros(size, dtype=values.dtype)


def in_numpy(function: Function) -> Function:
    """Has a function of tensors or arrays work in NumPy where it is given tensors to which torch adds nothing.

    Those are tensors on the processor that nobody differentiates; for them it returns tensors.
    """

    @wraps(function)
    def call(*values: Any) -> Any:
        if isinstance(values[0], Tensor) and all(v.is_cpu and not v.requires_grad for v in values):
            result = function(*(v.numpy() for v in values))
            return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)
        return function(*values)

    return call  # type: ignore[return-value]
