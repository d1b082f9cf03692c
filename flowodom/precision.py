"""Which half precision a device computes faster in than in single."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def half_precision(device: torch.device) -> torch.dtype | None:
    """Returns bfloat16 where the device multiplies in it, else None: it keeps the range of single precision."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return torch.bfloat16 if known.get("amx_bf16") or known.get("avx512_bf16") else None
    return None


def autocast(device: torch.device, *, half: bool = True) -> AbstractContextManager[None]:
    """Within it networks compute in half precision where that is faster, if ``half``."""
    dtype = half_precision(device) if half else None
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
