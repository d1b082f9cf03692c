"""Files of weights: those that come with flowodom, and reading and writing them without ever running what is in them.

Own files are safetensors with a card beside them: on what data, how long and with what result they were trained.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowodom.errors import WeightsError

FOLDER = Path(__file__).parent
"""Where the weights that come with flowodom are."""


def shipped(name: str) -> Path | None:
    """Returns the file of the weights of that name that come with flowodom; None when there are none."""
    path = FOLDER / f"{name}.safetensors"
    return path if path.is_file() else None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors, and the words about them, from safetensors or from a torch checkpoint.

    Args:
        path: A ``.safetensors`` file, or what ``torch.save`` wrote: a state, or a mapping with one under ``model``,
            ``state_dict`` or ``ema``.

    Returns:
        Tensors by name, on the CPU; and the metadata of a safetensors file, empty for others.

    Raises:
        WeightsError: There is no such file, it is damaged, it holds something else, or it claims to be safetensors
            and is not.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not path.is_file():
        raise WeightsError(f"there is no file of weights at {path}")
    return _read_checkpoint(path), {}


def words(path: Path) -> dict[str, str]:
    """Returns what a safetensors file says about its tensors, without reading them.

    Raises:
        WeightsError: It is missing, damaged or something else.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise WeightsError(f"there is no file of weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise WeightsError(
                f"{path} is named safetensors but holds a pickle, which is not opened under that name; "
                "if you trust where it comes from, rename it to .pth"
            ) from error
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); fetch or train it again") from error


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise WeightsError(f"{path} is no checkpoint of plain tensors: {reason}") from error
    for name in ("model", "state_dict", "ema"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} must hold a mapping of names to tensors, got {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) < len(content):
        strange = next(name for name, value in content.items() if not isinstance(value, Tensor))
        raise WeightsError(f"{path} must hold tensors only, got {type(content[strange]).__name__} under {strange!r}")
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors as safetensors, whole or not at all.

    Args:
        path: Where to; what is there is replaced.
        tensors: By name.
        metadata: Words about them.
    """
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, dict(metadata))
    temporary.replace(path)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Puts tensors into a network; every one must fit and none may be missing.

    Args:
        model: The network.
        tensors: By the network's own names.
        path: Where they come from, for the message.

    Raises:
        WeightsError: Names or shapes differ.
    """
    wanted = model.state_dict()
    # Counters of batches have no part in the result, and not every layout keeps them.
    counters = {name for name in (*wanted, *tensors) if name.endswith("num_batches_tracked")}
    missing, more = sorted(wanted.keys() - tensors.keys() - counters), sorted(tensors.keys() - wanted.keys() - counters)
    if missing or more:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: "
            f"{len(missing)} tensors are missing {missing[:3]}, {len(more)} are unknown {more[:3]}"
        )
    for name, value in wanted.items():
        if name not in counters and value.shape != tensors[name].shape:
            raise WeightsError(
                f"{path}: {name} must be of shape {tuple(value.shape)}, got {tuple(tensors[name].shape)}"
            )
    model.load_state_dict({name: tensors.get(name, value) for name, value in wanted.items()})
