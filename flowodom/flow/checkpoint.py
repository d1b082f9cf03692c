"""RAFT from a file: flowodom's own, or published weights in either of the two layouts they come in.

One layout is that of the authors (github.com/princeton-vl/RAFT, keys like ``module.fnet.layer1.0.conv1.weight``), the
other that of torchvision (``feature_encoder.layer1.0.convnormrelu1.0.weight``). Both are told by their keys, the size
of the network by the width of its first convolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flowodom import weights
from flowodom.errors import WeightsError
from flowodom.flow.raft import SIZES, Raft

MODEL = "raft"
"""What the metadata of own files says under ``model``; the size follows under ``size``."""

Renaming = tuple[tuple[str, str], ...]
"""Patterns of whole keys, and what takes their place; an empty string drops the key. Numbers in ``{}`` lose one."""

_AUTHORS: Renaming = (
    (r"fnet\.(.+)", r"features.\1"),
    (r"cnet\.(.+)", r"context.\1"),
    (r"update_block\.encoder\.convc(\d)\.(.+)", r"update.motion.correlation.{\1}.\2"),
    (r"update_block\.encoder\.convf(\d)\.(.+)", r"update.motion.flow.{\1}.\2"),
    (r"update_block\.encoder\.conv\.(.+)", r"update.motion.merge.\1"),
    (r"update_block\.gru\.conv([zrq])\.(.+)", r"update.units.0.\1.\2"),
    (r"update_block\.gru\.conv([zrq])(\d)\.(.+)", r"update.units.{\2}.\1.\3"),
    (r"update_block\.flow_head\.conv1\.(.+)", r"update.step.0.\1"),
    (r"update_block\.flow_head\.conv2\.(.+)", r"update.step.2.\1"),
    (r"update_block\.mask\.(.+)", r"update.mask.\1"),
    (r"(features|context)\.conv1\.(.+)", r"\1.stem.0.\2"),
    (r"(features|context)\.norm1\.(.+)", r"\1.stem.1.\2"),
    (r"(features|context)\.conv2\.(.+)", r"\1.head.\2"),
    # The norm of a shortcut is registered twice, here after those of a block's two convolutions.
    (r"(features|context)\.layer\d\.\d\.norm3\..+", ""),
    (r"(features|context)\.layer(\d)\.(\d)\.conv(\d)\.(.+)", r"\1.stages.{\2}.\3.branch.{\4}.0.\5"),
    (r"(features|context)\.layer(\d)\.(\d)\.norm(\d)\.(.+)", r"\1.stages.{\2}.\3.branch.{\4}.1.\5"),
    (r"(features|context)\.layer(\d)\.(\d)\.downsample\.(.+)", r"\1.stages.{\2}.\3.shortcut.\4"),
)

_TORCHVISION: Renaming = (
    (r"feature_encoder\.(.+)", r"features.\1"),
    (r"context_encoder\.(.+)", r"context.\1"),
    (r"mask_predictor\.convrelu\.(.+)", r"update.mask.\1"),
    (r"mask_predictor\.conv\.(.+)", r"update.mask.2.\1"),
    (r"update_block\.motion_encoder\.convcorr(\d)\.0\.(.+)", r"update.motion.correlation.{\1}.\2"),
    (r"update_block\.motion_encoder\.convflow(\d)\.0\.(.+)", r"update.motion.flow.{\1}.\2"),
    (r"update_block\.motion_encoder\.conv\.0\.(.+)", r"update.motion.merge.\1"),
    (r"update_block\.recurrent_block\.convgru(\d)\.conv([zrq])\.(.+)", r"update.units.{\1}.\2.\3"),
    (r"update_block\.flow_head\.conv1\.(.+)", r"update.step.0.\1"),
    (r"update_block\.flow_head\.conv2\.(.+)", r"update.step.2.\1"),
    (r"(features|context)\.convnormrelu\.(.+)", r"\1.stem.\2"),
    (r"(features|context)\.conv\.(.+)", r"\1.head.\2"),
    (r"(features|context)\.layer(\d)\.(\d)\.convnormrelu(\d)\.(.+)", r"\1.stages.{\2}.\3.branch.{\4}.\5"),
    (r"(features|context)\.layer(\d)\.(\d)\.downsample\.(.+)", r"\1.stages.{\2}.\3.shortcut.\4"),
)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns published weights under the names that ``Raft`` has for them.

    Raises:
        WeightsError: The keys are of neither layout.
    """
    bare = {name.removeprefix("module."): value for name, value in tensors.items()}
    if any(name.startswith("fnet.") for name in bare):
        layout = _AUTHORS
    elif any(name.startswith("feature_encoder.") for name in bare):
        layout = _TORCHVISION
    else:
        some = ", ".join(list(tensors)[:3])
        raise WeightsError(f"keys must be those of RAFT as its authors or torchvision publish it, got {some} ...")
    renamed = {_rename(name, layout): value for name, value in bare.items()}
    renamed.pop("", None)
    return renamed


def _rename(name: str, layout: Renaming) -> str:
    for pattern, replacement in layout:
        name = re.sub(f"^{pattern}$", replacement, name)
    return re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) - 1), name)


def load_raft(path: Path) -> Raft:
    """Makes the network that a file describes.

    Args:
        path: See ``weights.read``.

    Returns:
        The network on the CPU, set to evaluate.

    Raises:
        WeightsError: The file cannot be read or is not one of RAFT.
    """
    tensors, metadata = weights.read(path)
    if metadata.get("model", MODEL) != MODEL:
        raise WeightsError(f"{path} holds a {metadata['model']}, not a {MODEL}")
    try:
        state = tensors if "features.stem.0.weight" in tensors else from_published(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    stem = state.get("features.stem.0.weight")
    sizes = {widths.stem: size for size, widths in SIZES.items()}
    if stem is None or len(stem) not in sizes:
        raise WeightsError(f"{path} is of no size of RAFT that is known ({', '.join(SIZES)})")
    uncertain = any(name.startswith("update.mixture.") for name in state)
    model = Raft(size=sizes[len(stem)], uncertain=uncertain)
    weights.fill(model, state, path)
    return model.eval()


def save_raft(path: Path, model: Raft, metadata: Mapping[str, str]) -> None:
    """Writes a network so that ``load_raft`` finds it again; ``metadata`` are more words about it."""
    weights.write(path, model.state_dict(), {"model": MODEL, "size": model.size, **metadata})
