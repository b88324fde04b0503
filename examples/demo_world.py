"""The demo model's world: 64x64 pictures of letters, digits and shapes, drawn by rule, each named by its index alone.

``picture(i)`` draws the same picture on every machine with the same Pillow and fonts: class ``i % 16``, everything else
from numpy's generator seeded with ``(WORLD_SEED, i)``. Fonts are the ones that matplotlib ships (DejaVu, STIX).

    python examples/demo_world.py --count 40000 --out pool.npy      # uint8 (count, 64, 64, 3), drawn by all cores
"""

from __future__ import annotations

import argparse
import colorsys
import importlib.util
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 64
WORLD_SEED = 64_016
OVERSAMPLING = 4  # masks are drawn this much larger and box-filtered down: the antialiasing
TRAINING = (0, 10_000_000)  # index ranges that never meet: what the models see ...
FRESH = (10_000_000, 20_000_000)  # ... and what they are judged on

GLYPHS = ("A", "B", "E", "K", "2", "4", "5", "7")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
CLASS_NAMES: tuple[str, ...] = GLYPHS + SHAPES

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
)

Rng = np.random.Generator
Points = NDArray[np.float64]
Picture = NDArray[np.uint8]


def font_folder() -> Path:
    """The folder of matplotlib's fonts, found without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the demo pictures need matplotlib's fonts: pip install matplotlib")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_folder() / name), size)


# --- masks: what is drawn -------------------------------------------------------------------------------------------


def _circle(n: int = 96, phase: float = 0.0) -> Points:
    angle = phase + np.linspace(0.0, 2 * math.pi, n, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star(rng: Rng) -> Points:
    points = _circle(10, -math.pi / 2)
    points[1::2] *= rng.uniform(0.4, 0.52)
    return points * 1.12


def _heart(rng: Rng) -> Points:
    t = np.linspace(0.0, 2 * math.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16.5


def _cross(rng: Rng) -> Points:
    a = rng.uniform(0.26, 0.38)  # half the arm's width
    quarter = [(a, -1.0), (a, -a), (1.0, -a)]
    turned = [[(x, y), (-y, x), (-x, -y), (y, -x)][k] for k in range(4) for x, y in quarter]
    return np.array(turned)


def _outlines(name: str, rng: Rng) -> tuple[Points, Points | None]:
    """A shape's outline in a box of about -1 to 1, and the outline of what is cut out of it."""
    if name == "circle":
        return _circle() * 0.97, None
    if name == "square":
        return _circle(4, math.pi / 4) * 1.27, None
    if name == "triangle":
        return _circle(3, -math.pi / 2) * 1.2 + (0.0, 0.2), None
    if name == "star":
        return _star(rng), None
    if name == "heart":
        return _heart(rng), None
    if name == "ring":
        return _circle(), _circle() * rng.uniform(0.5, 0.66)
    if name == "cross":
        return _cross(rng), None
    return _circle(), _circle() * rng.uniform(0.84, 0.92) + (rng.uniform(0.5, 0.62), -0.12)  # moon


def shape_mask(name: str, rng: Rng, radius: float, centre: Points, turn: float) -> Image.Image:
    side = SIZE * OVERSAMPLING
    mask = Image.new("L", (side, side))
    stretch = np.array([1.0, rng.uniform(0.88, 1.12)])
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    outline, hole = _outlines(name, rng)
    for points, ink in ((outline, 255), (hole, 0)):
        if points is not None:
            placed = (points * stretch @ rotation * radius + centre) * OVERSAMPLING
            ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in placed], fill=ink)
    return mask


def glyph_mask(text: str, rng: Rng, radius: float, centre: Points, turn: float) -> Image.Image:
    side = SIZE * OVERSAMPLING
    font = _font(FONTS[int(rng.integers(len(FONTS)))], 100)
    left, top, right, bottom = font.getbbox(text)
    size = round(100 * 2.15 * radius * OVERSAMPLING / (bottom - top))  # so that its height is a bit over two radii
    font = _font(str(Path(str(font.path)).name), size)
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (side, side))
    origin = (side / 2 - (left + right) / 2, side / 2 - (top + bottom) / 2)
    ImageDraw.Draw(mask).text(origin, text, fill=255, font=font)
    x, y = (round((float(c) - SIZE / 2) * OVERSAMPLING) for c in centre)
    return mask.rotate(-math.degrees(turn), resample=Image.Resampling.BILINEAR, translate=(x, y))


# --- colours and backgrounds ------------------------------------------------------------------------------------------


def colour_of(rng: Rng, hue: float, luminance: float) -> NDArray[np.float64]:
    """A colour of that hue and luminance (0 to 1): darkened or mixed with white as needed."""
    rgb = np.array(colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.55, 1.0), 1.0))
    own = float(rgb @ (0.299, 0.587, 0.114))
    if luminance < own:
        return rgb * (luminance / own)
    return rgb + (1.0 - rgb) * (luminance - own) / (1.0 - own)


def _grid(turn: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel coordinates, centred and turned."""
    axis = np.arange(SIZE) + 0.5 - SIZE / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)


def _plain(rng: Rng) -> NDArray[np.float64]:
    return np.zeros((SIZE, SIZE))


def _gradient(rng: Rng) -> NDArray[np.float64]:
    along, _ = _grid(rng.uniform(0, 2 * math.pi))
    return np.clip(along / SIZE + 0.5, 0.0, 1.0) * 1.6


def _stripes(rng: Rng) -> NDArray[np.float64]:
    along, _ = _grid(float(rng.integers(4)) * math.pi / 4)
    period = rng.uniform(9.0, 16.0)
    wave = np.sin(2 * math.pi * (along / period + rng.random()))
    return np.clip(0.5 + wave * period / 6.3, 0.0, 1.0)


def _dots(rng: Rng) -> NDArray[np.float64]:
    period = rng.uniform(11.0, 16.0)
    across, along = _grid(float(rng.integers(2)) * math.pi / 4)
    dx = (across / period + rng.random()) % 1.0 - 0.5
    dy = (along / period + rng.random()) % 1.0 - 0.5
    return np.clip(0.28 * period - np.hypot(dx, dy) * period + 0.5, 0.0, 1.0)


BACKGROUNDS: tuple[Callable[[Rng], NDArray[np.float64]], ...] = (_plain, _gradient, _stripes, _dots)


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(index: int) -> Picture:
    """Picture ``index``: uint8 (64, 64, 3), of class ``index % 16``."""
    rng = np.random.default_rng((WORLD_SEED, index))
    name = CLASS_NAMES[label(index)]
    radius = rng.uniform(17.0, 23.0)
    room = SIZE / 2 - radius - 3.0
    centre = SIZE / 2 + rng.uniform(-room, room, 2)
    turn = math.radians(rng.uniform(-20.0, 20.0))
    mask = (glyph_mask if name in GLYPHS else shape_mask)(name, rng, radius, centre, turn)
    alpha = np.asarray(mask.reduce(OVERSAMPLING), np.float64)[..., None] / 255.0  # (64, 64, 1)

    dark, light = rng.uniform(0.08, 0.34), rng.uniform(0.68, 0.95)
    ink, ground = (dark, light) if rng.random() < 0.5 else (light, dark)
    hue = rng.random()
    first = colour_of(rng, hue, ground)
    step = rng.uniform(0.08, 0.13)
    apart = step if ground < 0.2 or 0.5 < ground < 0.8 else -step
    second = colour_of(rng, hue + rng.uniform(-0.08, 0.08), ground + apart)
    pattern = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))](rng)[..., None]
    back = first * (1.0 - pattern) + second * pattern
    front = colour_of(rng, hue + rng.uniform(0.15, 0.85), ink)
    return np.round(255 * np.clip(back * (1.0 - alpha) + front * alpha, 0.0, 1.0)).astype(np.uint8)


def label(index: int) -> int:
    """The class of picture ``index``."""
    return index % len(CLASS_NAMES)


def _block(bounds: tuple[int, int]) -> Picture:
    return np.stack([picture(i) for i in range(*bounds)])


def pictures(first: int, count: int, workers: int | None = None) -> Picture:
    """Pictures ``first`` to ``first + count``: uint8 (count, 64, 64, 3), drawn by ``workers`` processes (all cores)."""
    bounds = [(i, min(i + 256, first + count)) for i in range(first, first + count, 256)]
    if workers == 0 or len(bounds) < 3:
        return np.concatenate([_block(b) for b in bounds])
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(_block, bounds)))


def labels(first: int, count: int) -> NDArray[np.int64]:
    """The classes of these pictures."""
    return np.arange(first, first + count) % len(CLASS_NAMES)


def contact_sheet(images: Picture, columns: int = 16) -> Image.Image:
    """Pictures side by side, in rows of ``columns``, for looking at."""
    rows = math.ceil(len(images) / columns)
    sheet = np.zeros((rows * SIZE, columns * SIZE, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        sheet[y * SIZE : (y + 1) * SIZE, x * SIZE : (x + 1) * SIZE] = image
    return Image.fromarray(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=128, help="how many pictures")
    parser.add_argument("--first", type=int, default=0, help="index of the first")
    parser.add_argument("--out", type=Path, required=True, help="a .npy of all pictures, or a .png to look at")
    options = parser.parse_args()
    drawn = pictures(options.first, options.count)
    if options.out.suffix == ".png":
        contact_sheet(drawn).save(options.out)
    else:
        np.save(options.out, drawn)


if __name__ == "__main__":
    main()
