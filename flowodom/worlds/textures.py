"""Surface textures: procedural, seamless, made once as image pyramids and sampled without aliasing.

A texture is a square tile that repeats without a seam, in colour, and its pyramid of halved sizes. All tiles lie in one
atlas image, so that one call samples any number of different ones. Sampling is trilinear: the pyramid level follows the
size that a pixel has on the surface, which keeps fine patterns from flickering (and from ruining optical flow).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_FINEST = 8
"""The pyramids stop at this many texels across."""


def fractal(size: int, generator: torch.Generator, *, slope: float = 1.2, lowest: float = 1.0) -> Tensor:
    """Returns (size, size) seamless noise in [0, 1] whose spectrum falls as 1/f^slope, as natural images' do.

    Args:
        size: Texels across.
        generator: Source of randomness.
        slope: Exponent of the amplitude spectrum; 1 is natural, 0 white.
        lowest: Frequencies below this many cycles a tile are left out.
    """
    frequency = torch.fft.fftfreq(size, 1 / size)
    radius = torch.hypot(frequency[:, None], frequency[: size // 2 + 1].abs()[None, :])
    amplitude = torch.where(radius < lowest, 0.0, radius.clamp_min(1.0) ** -slope)
    # The last octave is rolled off so that the finest level is smooth between its texels.
    amplitude = amplitude * torch.exp(-((radius / (0.42 * size)) ** 4))
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(size, size, generator=generator)) * amplitude, s=(size, size))
    return 0.5 + 0.5 * torch.erf(noise / (noise.std() * math.sqrt(2)))


def _grid(size: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(line, line, indexing="ij")
    return u, v


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _pick(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _colour(generator: torch.Generator, low: float, high: float, *, saturation: float = 0.35) -> Tensor:
    """Draws a (3,) colour of a brightness between ``low`` and ``high``: mostly warm or grey, now and then vivid."""
    warmth = torch.randn((), generator=generator) * 0.35 + 0.25
    green = torch.randn((), generator=generator) * 0.2
    vivid = 2.0 if _uniform(generator, 0, 1) < 0.2 else 1.0
    hue = torch.stack((warmth, green, -warmth - 0.5 * green)) * saturation * vivid
    return (_uniform(generator, low, high) * (1 + hue)).clamp(0.02, 0.98)


def _shades(colour: Tensor, generator: torch.Generator, *levels: float) -> Tensor:
    """Returns (N, 3) colours like ``colour`` at the given brightnesses, each a little off in hue."""
    hue = colour / colour.mean()
    rows = [level * hue * (1 + 0.12 * torch.randn(3, generator=generator)) for level in levels]
    return torch.stack(rows).clamp(0.02, 0.98)


def _ramp(values: Tensor, colours: Tensor) -> Tensor:
    """Maps (...) values in [0, 1] onto a (N, 3) list of colours, linearly; returns (3, ...)."""
    x = values.clamp(0, 1) * (len(colours) - 1)
    low = x.floor().clamp(max=len(colours) - 2)
    weight = (x - low)[..., None]
    mixed = colours[low.long()] * (1 - weight) + colours[low.long() + 1] * weight
    return mixed.movedim(-1, 0)


def _mask(distance: Tensor, width: float) -> Tensor:
    """A soft step: 0 where the distance is below zero, 1 above ``width``."""
    x = (distance / width).clamp(0, 1)
    return x * x * (3 - 2 * x)


def clouds(size: int, generator: torch.Generator) -> Tensor:
    """Coloured 1/f noise: stone, plaster, cloth, foliage from afar."""
    colours = _shades(_colour(generator, 0.4, 0.5), generator, 0.12, 0.4, 0.5, 0.8)
    mixed = _ramp(fractal(size, generator, slope=_uniform(generator, 0.8, 1.25), lowest=2), colours)
    tone = fractal(size, generator, slope=1.0, lowest=3)
    return mixed * (0.7 + 0.6 * tone)


def plaster(size: int, generator: torch.Generator) -> Tensor:
    """A painted wall: hardly any texture."""
    tone = 0.5 * fractal(size, generator, slope=1.3) + 0.5 * fractal(size, generator, slope=0.6, lowest=8)
    return _colour(generator, 0.6, 0.8, saturation=0.2)[:, None, None] * (0.9 + 0.2 * tone)


def _nearest_two(size: int, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, in cells, to the nearest and the second jittered grid point, and the index of the nearest."""
    u, v = _grid(size)
    u, v = u * cells, v * cells
    jitter = torch.rand(cells * cells, 2, generator=generator)
    first, second = torch.full_like(u, 9.0), torch.full_like(u, 9.0)
    owner = torch.zeros_like(u, dtype=torch.int64)
    for dv in (-1, 0, 1):
        for du in (-1, 0, 1):
            i, j = u.floor().long() + du, v.floor().long() + dv
            cell = (j % cells) * cells + i % cells
            distance = torch.hypot(i + jitter[cell, 0] - u, j + jitter[cell, 1] - v)
            closer = distance < first
            second = torch.where(closer, first, torch.minimum(second, distance))
            owner = torch.where(closer, cell, owner)
            first = torch.where(closer, distance, first)
    return first, second, owner


def cells(size: int, generator: torch.Generator) -> Tensor:
    """Irregular coloured cells with joints: flagstones, terrazzo, giraffe."""
    count = _pick(generator, 7, 22)
    first, second, owner = _nearest_two(size, count, generator)
    base, joint = _colour(generator, 0.35, 0.7), _colour(generator, 0.05, 0.3)
    tints = base * (0.55 + 0.9 * torch.rand(count * count, 1, generator=generator))
    tints = tints * (1 + 0.2 * (torch.rand(count * count, 3, generator=generator) - 0.5))
    stone = tints[owner].movedim(-1, 0) * (0.75 + 0.5 * fractal(size, generator, slope=1.0, lowest=4))
    edge = _mask(second - first - 0.05, 0.08)
    return joint[:, None, None] * (1 - edge) + stone * edge


def bricks(size: int, generator: torch.Generator) -> Tensor:
    """Bricks or planks in courses, each of its own shade."""
    rows = 2 * _pick(generator, 3, 9)
    columns = max(2, round(rows * _uniform(generator, 0.2, 0.5)))
    u, v = _grid(size)
    row = (v * rows).floor()
    shift = torch.rand(rows, generator=generator)[row.long()] * 0.2 + 0.5 * (row % 2)
    x = u * columns + shift
    column = x.floor().long() % columns
    x, y = x - x.floor(), v * rows - row
    shade = 0.65 + 0.7 * torch.rand(rows, columns, generator=generator)[row.long(), column]
    edge = torch.minimum(torch.minimum(x, 1 - x) * (rows / columns), torch.minimum(y, 1 - y))
    inside = _mask(edge - 0.03, 0.06)
    grain = 0.7 + 0.6 * fractal(size, generator, slope=0.9, lowest=4)
    brick = _colour(generator, 0.35, 0.6)[:, None, None] * shade * grain
    mortar = _colour(generator, 0.15, 0.8, saturation=0.15)[:, None, None] * (0.85 + 0.3 * grain.flip(0))
    return mortar * (1 - inside) + brick * inside


def checker(size: int, generator: torch.Generator) -> Tensor:
    """Worn tiles in two colours: repetitive on purpose."""
    count = 2 * _pick(generator, 2, 6)
    u, v = _grid(size)
    x, y = u * count, v * count
    odd = ((x.floor() + y.floor()) % 2).bool()
    dark, light = _colour(generator, 0.15, 0.35), _colour(generator, 0.55, 0.85, saturation=0.25)
    tile = torch.where(odd, dark[:, None, None], light[:, None, None])
    shade = 0.8 + 0.4 * torch.rand(count, count, generator=generator)[y.long(), x.long()]
    joint = torch.minimum(torch.minimum(x - x.floor(), x.ceil() - x), torch.minimum(y - y.floor(), y.ceil() - y))
    wear = 0.7 + 0.6 * fractal(size, generator, slope=0.9, lowest=3)
    return tile * shade * wear * (0.5 + 0.5 * _mask(joint - 0.015, 0.04))


def stripes(size: int, generator: torch.Generator) -> Tensor:
    """Wavy bands of several colours: wallpaper, cloth, layered rock."""
    count = _pick(generator, 3, 12)
    u, v = _grid(size)
    warp = fractal(size, generator, slope=1.8) - 0.5
    phase = count * (u if _pick(generator, 0, 1) else v) + _uniform(generator, 0.2, 1.2) * warp
    bands = 0.5 + 0.5 * torch.sin(2 * math.pi * phase) * (0.6 + 0.4 * torch.sin(2 * math.pi * (v + phase / count)))
    two = (_colour(generator, 0.2, 0.4), _colour(generator, 0.5, 0.8))
    colours = torch.stack((two[0], 0.75 * two[1], 1.3 * two[0], two[1]))
    weave = 0.75 + 0.5 * fractal(size, generator, slope=0.7, lowest=6)
    return _ramp(_mask(bands - 0.2, 0.6), colours) * weave


def wood(size: int, generator: torch.Generator) -> Tensor:
    """Boards with grain along u."""
    boards = _pick(generator, 4, 8)
    v = _grid(size)[1]
    board = (v * boards).floor().long()
    drift = (torch.rand(boards, generator=generator) * size).long()[board]
    along = (torch.arange(size)[None, :] + drift) % size
    coarse = fractal(size, generator, slope=1.2, lowest=2)
    rows = torch.arange(size)[:, None].expand(size, size)
    # Squeezing the noise eightfold across the boards makes it run along them.
    squeezed = coarse[(rows * 8) % size, along]
    rings = 0.5 + 0.5 * torch.sin(2 * math.pi * (3 * squeezed + 4 * v * boards))
    shade = (0.8 + 0.4 * torch.rand(boards, generator=generator))[board]
    edge = torch.minimum(v * boards - board, board + 1 - v * boards)
    tone = (0.55 + 0.3 * squeezed + 0.25 * rings) * shade * (0.45 + 0.55 * _mask(edge - 0.01, 0.03))
    fine = 0.85 + 0.3 * fractal(size, generator, slope=0.6, lowest=8)
    base = torch.tensor([0.72, 0.50, 0.32]) * _uniform(generator, 0.8, 1.3)
    return base[:, None, None] * tone * fine


def speckle(size: int, generator: torch.Generator) -> Tensor:
    """Dots of many sizes and colours on a plain ground: carpet, granite, gravel."""
    ground = _colour(generator, 0.35, 0.6)
    image = ground[:, None, None] * (0.8 + 0.4 * fractal(size, generator, slope=1.1))
    variety = _uniform(generator, 0.02, 0.2)
    for count in (_pick(generator, 10, 16), _pick(generator, 22, 34), 64):
        first, _, owner = _nearest_two(size, count, generator)
        dots = ground * (0.3 + 1.4 * torch.rand(count * count, 1, generator=generator))
        dots = dots * (1 + variety * torch.randn(count * count, 3, generator=generator))
        radius = 0.1 + 0.3 * torch.rand(count * count, generator=generator)
        inside = _mask(radius[owner] - first, 0.08)
        image = image * (1 - inside) + dots[owner].movedim(-1, 0) * inside
    return image


def marks(size: int, generator: torch.Generator) -> Tensor:
    """A printed page or poster: lines of small dark marks in blocks, and a picture or two."""
    rows = _pick(generator, 14, 30)
    u, v = _grid(size)
    width = 4 * rows
    y = v * rows
    glyphs = torch.rand(rows, width, generator=generator)[(y.long(), (u * width).long())]
    gaps = torch.rand(rows, width // 6, generator=generator)[(y.long(), (u * (width // 6)).long())] > 0.2
    ink = (glyphs > 0.45) & gaps & ((y - y.floor() - 0.5).abs() < 0.3)
    page = _colour(generator, 0.7, 0.9, saturation=0.2)[:, None, None].expand(3, size, size).clone()
    page = torch.where(ink, _colour(generator, 0.05, 0.25)[:, None, None], page)
    for _ in range(3):
        w, h = (int(size * _uniform(generator, 0.15, 0.45)) for _ in range(2))
        x0, y0 = _pick(generator, 0, size - w), _pick(generator, 0, size - h)
        page[:, y0 : y0 + h, x0 : x0 + w] = clouds(size, generator)[:, :h, :w]
    return page * (0.85 + 0.3 * fractal(size, generator, slope=1.0))


def wallpaper(size: int, generator: torch.Generator) -> Tensor:
    """A small repeated motif on pale paper, not quite alike anywhere."""
    count = 2 * _pick(generator, 4, 9)
    u, v = _grid(size)
    bend = 0.15 * (fractal(size, generator, slope=1.6) - 0.5)
    x, y = 2 * math.pi * (count * u + bend), 2 * math.pi * (count * v + bend.flip(0))
    leaf = torch.sin(x + _uniform(generator, 0.5, 2) * torch.cos(y)) * torch.cos(0.5 * y + torch.sin(x))
    motif = _mask(leaf.abs() - _uniform(generator, 0.3, 0.6), 0.25)
    paper = _colour(generator, 0.5, 0.8, saturation=0.25)
    ink = (paper * _uniform(generator, 0.55, 0.8))[:, None, None]
    wear = 0.85 + 0.3 * fractal(size, generator, slope=1.0, lowest=2)
    return (paper[:, None, None] * (1 - motif) + ink * motif) * wear


def foliage(size: int, generator: torch.Generator) -> Tensor:
    """Leaves in light and shade."""
    first, second, owner = _nearest_two(size, 40, generator)
    light = torch.rand(1600, generator=generator)[owner] * _mask(second - first, 0.3)
    tone = 0.55 * light + 0.45 * fractal(size, generator, slope=1.0, lowest=2)
    green = torch.tensor([0.85, 1.25, 0.55]) * (1 + 0.15 * torch.randn(3, generator=generator))
    return _ramp(tone, _shades(green, generator, 0.06, 0.25, 0.45, 0.75))


def facade(size: int, generator: torch.Generator) -> Tensor:
    """A house front: rows of windows in plaster."""
    rows, columns = _pick(generator, 2, 3), _pick(generator, 2, 4)
    u, v = _grid(size)
    x, y = u * columns, v * rows
    half_x, half_y = _uniform(generator, 0.18, 0.32), _uniform(generator, 0.22, 0.32)
    inset = torch.minimum(half_x - (x % 1 - 0.5).abs(), half_y - (y % 1 - 0.5).abs())
    bar = torch.minimum((x % 1 - 0.5).abs(), (y % 1 - 0.45).abs())
    pane = torch.rand(rows, columns, generator=generator)[y.long(), x.long()]
    glass = (0.12 + 0.3 * pane) * (0.5 + 1.0 * fractal(size, generator, slope=1.4))
    glass = glass * torch.tensor([0.85, 0.95, 1.15])[:, None, None]
    frame = _colour(generator, 0.5, 0.9, saturation=0.2)[:, None, None].expand(3, size, size)
    wall = plaster(size, generator) * (0.75 + 0.5 * fractal(size, generator, slope=1.0, lowest=3))
    opening = _mask(inset, 0.02)
    window = torch.where((inset > 0.03) & (bar > 0.02), glass, frame)
    return wall * (1 - opening) + window * opening


def sky(size: int, generator: torch.Generator) -> Tensor:
    """Clouds on blue."""
    colours = torch.tensor([[0.42, 0.58, 0.82], [0.55, 0.68, 0.86], [0.82, 0.86, 0.9], [0.95, 0.95, 0.95]])
    return _ramp(fractal(size, generator, slope=1.7), colours)


def fine(size: int, generator: torch.Generator) -> Tensor:
    """Grey detail that is laid over other textures where the camera comes near; its mean is one half."""
    noise = fractal(size, generator, slope=0.9, lowest=4)
    return (0.5 + 0.5 * (noise - noise.mean())).expand(3, size, size)


def blank(size: int, generator: torch.Generator) -> Tensor:
    """One colour: nothing to hold on to."""
    return _colour(generator, 0.3, 0.85, saturation=0.25)[:, None, None].expand(3, size, size).clone()


def natural(size: int, generator: torch.Generator) -> Tensor:
    """Colour noise with the 1/f spectrum of natural images (Field 1987), most of it in brightness."""
    tone = fractal(size, generator, slope=_uniform(generator, 0.9, 1.1))
    hue = torch.stack([fractal(size, generator, slope=1.2) for _ in range(3)])
    colour = _colour(generator, 0.4, 0.7)[:, None, None]
    return colour * (0.25 + 1.5 * tone) * (0.8 + 0.4 * hue)


def leaves(size: int, generator: torch.Generator) -> Tensor:
    """Dead leaves: discs and rectangles that hide each other, small ones most (Lee, Mumford and Huang 2001)."""
    image = clouds(size, generator)
    grain = 0.75 + 0.5 * fractal(size, generator, slope=0.9, lowest=4)
    for _ in range(220):
        # Sizes fall off as the cube, which gives the image the same statistics at every scale.
        radius = min(0.35, 0.015 / (1 - _uniform(generator, 0, 0.999)) ** 0.5) * size
        reach = int(radius) + 1
        line = torch.arange(-reach, reach + 1)
        rows = (_pick(generator, 0, size - 1) + line) % size
        columns = (_pick(generator, 0, size - 1) + line) % size
        angle = _uniform(generator, 0, math.pi)
        a = math.cos(angle) * line[:, None] + math.sin(angle) * line[None]
        b = math.cos(angle) * line[None] - math.sin(angle) * line[:, None]
        square = _pick(generator, 0, 1)
        gap = torch.maximum(a.abs() / 0.8, b.abs() / 0.5) if square else torch.hypot(a, b / _uniform(generator, 0.4, 1))
        cover = (radius + 0.5 - gap).clamp(0, 1)
        block = (slice(None), rows[:, None], columns[None])
        leaf = _colour(generator, 0.1, 0.8)[:, None, None] * grain[block[1:]]
        image[block] = torch.lerp(image[block], leaf, cover)
    return image


def mosaic(size: int, generator: torch.Generator) -> Tensor:
    """One small motif again and again, exactly alike everywhere."""
    motif = size // 2 ** _pick(generator, 2, 4)
    cell = (clouds if _pick(generator, 0, 1) else leaves)(motif, generator)
    return cell.repeat(1, size // motif, size // motif)


PATTERNS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    make.__name__: make
    for make in (
        clouds,
        plaster,
        cells,
        bricks,
        checker,
        stripes,
        wood,
        speckle,
        marks,
        wallpaper,
        foliage,
        facade,
        sky,
        fine,
        blank,
        natural,
        leaves,
        mosaic,
    )
}
"""Every pattern by name: each takes the number of texels across and a generator, and returns (3, size, size)."""


@dataclass(frozen=True)
class Atlas:
    """All textures of a world in one image, with their pyramids.

    Attributes:
        image: (1, C, height, width) float32 colours in [0, 1].
        size: Texels across each tile at the finest level.
        levels: Levels of each pyramid.
    """

    image: Tensor
    size: int
    levels: int

    @staticmethod
    def build(tiles: list[Tensor], *, device: torch.device | str = "cpu") -> Atlas:
        """Makes the pyramids of (C, S, S) tiles, all of one power-of-two size, and lays them side by side."""
        size = tiles[0].shape[-1]
        levels = int(math.log2(size // _FINEST)) + 1
        columns = []
        stack = torch.stack([tile.clamp(0, 1) for tile in tiles])
        for level in range(levels):
            # One texel of the opposite side around each tile lets bilinear sampling cross the seam.
            padded = functional.pad(stack, (1, 1, 1, 1), mode="circular")
            columns.append(functional.pad(padded, (0, size - (size >> level))))
            stack = functional.avg_pool2d(stack, 2)
        column = torch.cat(columns, dim=-2)
        image = column.permute(1, 2, 0, 3).reshape(1, stack.shape[1], column.shape[-2], -1)
        return Atlas(image.contiguous().to(device), size, levels)

    def sample(self, tile: Tensor | int, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
        """Looks colours up.

        Args:
            tile: (R) index of the texture, any number type, or one index for all.
            u: (R) position across, in tiles; repeats with period 1.
            v: (R) position down, in tiles.
            footprint: (R) width of a pixel on the surface, in tiles.

        Returns:
            (C, R) colours.
        """
        height, width = self.image.shape[-2:]
        lod = torch.log2(footprint * self.size).clamp(0, self.levels - 1.001)
        lower = lod.floor()
        texels = self.size * torch.exp2(-lower)
        x, y = (u - u.floor()) * texels, (v - v.floor()) * texels
        left = tile * (self.size + 2) + 0.5
        # Rows above level l: the sizes size, size/2, ... and two texels of border for each.
        top = 2 * (self.size - texels) + 2 * lower + 0.5
        where = torch.empty((2, len(u), 2), device=u.device)
        where[0, :, 0] = left + x
        where[0, :, 1] = top + y
        where[1, :, 0] = left + 0.5 * x
        where[1, :, 1] = top + texels + 2 + 0.5 * y
        where *= torch.tensor([2 / (width - 1), 2 / (height - 1)], device=u.device)
        colours = functional.grid_sample(self.image, where.sub_(1)[None], align_corners=True)[0]
        return torch.lerp(colours[:, 0], colours[:, 1], lod - lower)
