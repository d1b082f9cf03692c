"""RAFT as published, a second time: plain functions on weights in the authors' layout, nothing shared with flowodom.

Written from Teed and Deng (ECCV 2020) and the description of the two layouts; slow, explicit, without ``grid_sample``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]

RADIUS = {"small": 3, "large": 4}
HIDDEN = {"small": 96, "large": 128}


def layers(size: str) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """Yields each convolution's name in the authors' and in torchvision's layout, its shape, and its batch norm's name.

    The norm's name is the authors'; empty where there is none. Torchvision's has the same with a last number one up.
    """
    small = size == "small"
    stem, stages = (32, (32, 64, 96)) if small else (64, (64, 96, 128))
    outputs = {"fnet": 128 if small else 256, "cnet": 160 if small else 256}
    for net, long in (("fnet", "feature_encoder"), ("cnet", "context_encoder")):
        batch = net == "cnet" and not small
        yield f"{net}.conv1", f"{long}.convnormrelu.0", (stem, 3, 7, 7), f"{net}.norm1" if batch else ""
        channels = stem
        for k, width in enumerate(stages, start=1):
            for b in range(2):
                old, new = f"{net}.layer{k}.{b}", f"{long}.layer{k}.{b}"
                inputs = channels if b == 0 else width
                quarter = width // 4
                shapes = [(quarter, inputs, 1, 1), (quarter, quarter, 3, 3), (width, quarter, 1, 1)]
                if not small:
                    shapes = [(width, inputs, 3, 3), (width, width, 3, 3)]
                for i, shape in enumerate(shapes, start=1):
                    yield f"{old}.conv{i}", f"{new}.convnormrelu{i}.0", shape, f"{old}.norm{i}" if batch else ""
                if k > 1 and b == 0:
                    norm = f"{old}.downsample.1" if batch else ""
                    yield f"{old}.downsample.0", f"{new}.downsample.0", (width, inputs, 1, 1), norm
            channels = width
        yield f"{net}.conv2", f"{long}.conv", (outputs[net], channels, 1, 1), ""
    planes = 4 * (2 * RADIUS[size] + 1) ** 2
    motion, block = "update_block.motion_encoder", "update_block"
    if small:
        yield "update_block.encoder.convc1", f"{motion}.convcorr1.0", (96, planes, 1, 1), ""
        yield "update_block.encoder.convf1", f"{motion}.convflow1.0", (64, 2, 7, 7), ""
        yield "update_block.encoder.convf2", f"{motion}.convflow2.0", (32, 64, 3, 3), ""
        yield "update_block.encoder.conv", f"{motion}.conv.0", (80, 128, 3, 3), ""
        for gate in "zrq":
            new = f"{block}.recurrent_block.convgru1.conv{gate}"
            yield f"update_block.gru.conv{gate}", new, (96, 96 + 64 + 82, 3, 3), ""
    else:
        yield "update_block.encoder.convc1", f"{motion}.convcorr1.0", (256, planes, 1, 1), ""
        yield "update_block.encoder.convc2", f"{motion}.convcorr2.0", (192, 256, 3, 3), ""
        yield "update_block.encoder.convf1", f"{motion}.convflow1.0", (128, 2, 7, 7), ""
        yield "update_block.encoder.convf2", f"{motion}.convflow2.0", (64, 128, 3, 3), ""
        yield "update_block.encoder.conv", f"{motion}.conv.0", (126, 256, 3, 3), ""
        for i, kernel in ((1, (1, 5)), (2, (5, 1))):
            for gate in "zrq":
                new = f"{block}.recurrent_block.convgru{i}.conv{gate}"
                yield f"update_block.gru.conv{gate}{i}", new, (128, 128 + 128 + 128, *kernel), ""
        yield "update_block.mask.0", "mask_predictor.convrelu.0", (256, 128, 3, 3), ""
        yield "update_block.mask.2", "mask_predictor.conv", (576, 256, 1, 1), ""
    hidden, inner = (96, 128) if small else (128, 256)
    yield "update_block.flow_head.conv1", f"{block}.flow_head.conv1", (inner, hidden, 3, 3), ""
    yield "update_block.flow_head.conv2", f"{block}.flow_head.conv2", (2, inner, 3, 3), ""


def random_weights(size: str) -> tuple[Weights, Weights]:
    """Returns the same random weights in the authors' layout and in torchvision's."""
    generator = torch.Generator().manual_seed(5)
    authors: Weights = {}
    torchvision: Weights = {}
    for old, new, shape, norm in layers(size):
        fan = shape[1] * shape[2] * shape[3]
        weight = torch.randn(shape, generator=generator) * (1.6 / fan) ** 0.5
        bias = 0.1 * torch.randn(shape[0], generator=generator)
        for name, state, prefix in ((old, authors, "module."), (new, torchvision, "")):
            state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"] = weight, bias
        if not norm:
            continue
        numbers = {
            "weight": 1 + 0.2 * torch.randn(shape[0], generator=generator),
            "bias": 0.1 * torch.randn(shape[0], generator=generator),
            "running_mean": 0.1 * torch.randn(shape[0], generator=generator),
            "running_var": 0.5 + torch.rand(shape[0], generator=generator),
            "num_batches_tracked": torch.tensor(7),
        }
        stem = new.rpartition(".")[0]
        for part, value in numbers.items():
            authors[f"module.{norm}.{part}"] = value
            torchvision[f"{stem}.1.{part}"] = value
            if norm.endswith("downsample.1"):  # the authors' code registers this norm under a second name
                authors[f"module.{norm.removesuffix('downsample.1')}norm3.{part}"] = value
    return authors, torchvision


def flow(weights: Weights, first: Tensor, second: Tensor, *, size: str, updates: int) -> Tensor:
    """Returns the (B, 2, H, W) flow of (B, 3, H, W) images in [-1, 1], for weights in the authors' layout."""
    w = {name.removeprefix("module."): value for name, value in weights.items()}

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        pad = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        return functional.conv2d(x, kernel, w[f"{name}.bias"], stride=stride, padding=pad)

    def norm(name: str, x: Tensor, kind: str) -> Tensor:
        if kind == "none":
            return x
        if kind == "instance":
            mean = x.mean(dim=(2, 3), keepdim=True)
            return (x - mean) / (((x - mean) ** 2).mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
        mean, var, scale, shift = (
            w[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def encode(net: str, x: Tensor, kind: str) -> Tensor:
        x = norm(f"{net}.norm1", conv(f"{net}.conv1", x, 2), kind).relu()
        for k in (1, 2, 3):
            for b in (0, 1):
                name, stride = f"{net}.layer{k}.{b}", 2 if k > 1 and b == 0 else 1
                steps = (1, stride, 1) if size == "small" else (stride, 1)
                y = x
                for i, step in enumerate(steps, start=1):
                    y = norm(f"{name}.norm{i}", conv(f"{name}.conv{i}", y, step), kind).relu()
                if stride == 2:
                    x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, 2), kind)
                x = (x + y).relu()
        return conv(f"{net}.conv2", x)

    f1, f2 = encode("fnet", first, "instance"), encode("fnet", second, "instance")
    context = encode("cnet", first, "batch" if size == "large" else "none")
    hidden, context = context[:, : HIDDEN[size]].tanh(), context[:, HIDDEN[size] :].relu()

    batch, channels, height, width = f1.shape
    volume = torch.einsum("bcyx,bcvu->byxvu", f1, f2) / channels**0.5
    pyramid = [volume]
    for _ in range(3):
        v = pyramid[-1]
        rows, columns = v.shape[3] // 2 * 2, v.shape[4] // 2 * 2
        v = v[:, :, :, :rows, :columns]
        pyramid.append((v[..., ::2, ::2] + v[..., 1::2, ::2] + v[..., ::2, 1::2] + v[..., 1::2, 1::2]) / 4)

    def at(level: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Reads whole cells (B, h, w) of each pixel's own map; zero outside."""
        rows, columns = level.shape[3:]
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        b, i, j = torch.meshgrid(torch.arange(batch), torch.arange(height), torch.arange(width), indexing="ij")
        return level[b, i, j, y.clamp(0, rows - 1), x.clamp(0, columns - 1)] * inside

    def look_up(x: Tensor, y: Tensor) -> Tensor:
        found = []
        for k, level in enumerate(pyramid):
            for dx in range(-RADIUS[size], RADIUS[size] + 1):  # the offset in x is the slow one
                for dy in range(-RADIUS[size], RADIUS[size] + 1):
                    px, py = x / 2**k + dx, y / 2**k + dy
                    left, top = px.floor(), py.floor()
                    right_part, bottom_part = px - left, py - top
                    ix, iy = left.long(), top.long()
                    found.append(
                        at(level, ix, iy) * (1 - right_part) * (1 - bottom_part)
                        + at(level, ix + 1, iy) * right_part * (1 - bottom_part)
                        + at(level, ix, iy + 1) * (1 - right_part) * bottom_part
                        + at(level, ix + 1, iy + 1) * right_part * bottom_part
                    )
        return torch.stack(found, dim=1)

    here_y, here_x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    moved = torch.zeros(batch, 2, height, width)
    for _ in range(updates):
        correlation = look_up(here_x + moved[:, 0], here_y + moved[:, 1])
        seen = conv("update_block.encoder.convc1", correlation).relu()
        if size == "large":
            seen = conv("update_block.encoder.convc2", seen).relu()
        motion = conv("update_block.encoder.convf2", conv("update_block.encoder.convf1", moved).relu()).relu()
        merged = conv("update_block.encoder.conv", torch.cat((seen, motion), 1)).relu()
        inputs = torch.cat((context, merged, moved), 1)
        for number in ("",) if size == "small" else ("1", "2"):
            both = torch.cat((hidden, inputs), 1)
            z = conv(f"update_block.gru.convz{number}", both).sigmoid()
            r = conv(f"update_block.gru.convr{number}", both).sigmoid()
            q = conv(f"update_block.gru.convq{number}", torch.cat((r * hidden, inputs), 1)).tanh()
            hidden = (1 - z) * hidden + z * q
        moved = moved + conv("update_block.flow_head.conv2", conv("update_block.flow_head.conv1", hidden).relu())

    if size == "small":
        return 8 * torch.einsum("ih,bchw,jw->bcij", _linear(height), moved, _linear(width))
    mask = 0.25 * conv("update_block.mask.2", conv("update_block.mask.0", hidden).relu())
    mask = mask.view(batch, 9, 8, 8, height, width).softmax(1)
    padded = functional.pad(8 * moved, (1, 1, 1, 1))
    fine = torch.zeros(batch, 2, 8 * height, 8 * width)
    for i in range(8):
        for j in range(8):
            for n in range(9):
                shifted = padded[:, :, n // 3 : n // 3 + height, n % 3 : n % 3 + width]
                fine[:, :, i::8, j::8] += mask[:, n, i, j].unsqueeze(1) * shifted
    return fine


def _linear(size: int) -> Tensor:
    """Returns the (8 size, size) matrix of linear interpolation whose first and last places stay where they are."""
    place = torch.arange(8 * size) * (size - 1) / (8 * size - 1)
    return (1 - (place[:, None] - torch.arange(size)).abs()).clamp_min(0)
