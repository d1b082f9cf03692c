"""Checkpoints of a training run: whole or absent, in small files, and free of anything that could run.

A checkpoint is a folder of safetensors, each under ``LARGEST`` bytes, with ``state.json`` beside them. It is written
under another name and renamed when it is complete, so a process that is killed leaves the one before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowodom import weights
from flowodom.errors import WeightsError

LARGEST = 15 << 20
"""Most bytes of tensors in one file."""

KEPT = 2
"""Checkpoints that are kept."""


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Writes the checkpoint of a step and removes the oldest ones.

    Args:
        folder: Of all checkpoints of the run.
        step: Its step.
        tensors: By name; one that is larger than ``LARGEST`` is cut up.
        state: What else is to be kept, in terms of JSON.

    Returns:
        The checkpoint's folder.
    """
    whole = folder / f"step-{step:08d}"
    part = folder / f"{whole.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shapes: dict[str, list[int]] = {}
    shards: list[dict[str, Tensor]] = [{}]
    room = LARGEST
    for name, tensor in tensors.items():
        shapes[name] = list(tensor.shape)
        pieces = tensor.detach().cpu().reshape(-1).split(LARGEST // tensor.element_size())  # type: ignore[no-untyped-call]
        for number, piece in enumerate(pieces):
            size = piece.numel() * piece.element_size()
            if size > room:
                shards.append({})
                room = LARGEST
            shards[-1][f"{name}#{number}"] = piece.clone()
            room -= size
    for number, shard in enumerate(shards):
        weights.write(part / f"{number:03d}.safetensors", shard, {})
    text = json.dumps({"step": step, "shapes": shapes, "files": len(shards), **state}, indent=1)
    (part / "state.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(whole, ignore_errors=True)
    part.rename(whole)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return whole


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Reads the newest checkpoint of a run.

    Args:
        folder: Of all checkpoints of the run.

    Returns:
        Tensors by name and the rest of the state; None where there is no checkpoint.

    Raises:
        WeightsError: It is damaged.
    """
    found = _all(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        pieces: dict[str, Tensor] = {}
        for number in range(state["files"]):
            pieces |= weights.read(newest / f"{number:03d}.safetensors")[0]
        tensors = {}
        for name, shape in state["shapes"].items():
            mine = [pieces.pop(f"{name}#0")]
            while f"{name}#{len(mine)}" in pieces:
                mine.append(pieces.pop(f"{name}#{len(mine)}"))
            tensors[name] = _join(mine, shape)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, WeightsError) as error:
        raise WeightsError(
            f"the checkpoint {newest} is damaged ({error}); remove it to go on from the one before"
        ) from error
    return tensors, state


def _join(pieces: list[Tensor], shape: list[int]) -> Tensor:
    whole = pieces[0].new_empty(sum(len(piece) for piece in pieces))
    start = 0
    for piece in pieces:
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole.view(shape)
