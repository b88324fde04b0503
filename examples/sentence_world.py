"""The demo's world with sentences: pictures whose thing, colours, ground and turn are named in a line of text.

``scene(i)`` says what picture i shows, ``picture(i)`` draws it, ``sentence(i)`` is one way to say it, such as "a red
seven on a green gradient, rotated". All three follow from i alone. Masks and grounds are those of ``demo_world``.

    python examples/sentence_world.py --count 64 --out sentences.png
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_world import (
    BACKGROUNDS,
    CLASS_NAMES,
    GLYPHS,
    OVERSAMPLING,
    SIZE,
    colour_of,
    contact_sheet,
    glyph_mask,
    shape_mask,
)
from numpy.typing import NDArray

SEED = 64_128
# Spoken names of the things, in the order of CLASS_NAMES.
SPOKEN = ("letter A", "letter B", "letter E", "letter K", "two", "four", "five", "seven", *CLASS_NAMES[len(GLYPHS) :])
COLOURS = {
    "red": 0.0,
    "orange": 0.085,
    "yellow": 0.16,
    "green": 0.34,
    "blue": 0.61,
    "purple": 0.76,
    "pink": 0.9,
}  # hues
GROUNDS = ("plain ground", "gradient", "stripes", "dots")  # as BACKGROUNDS draws them
ROUND = ("circle", "ring")  # what cannot be seen turned

# What a judge is asked of a picture, and how many answers there are.
ATTRIBUTES = {
    "thing": len(CLASS_NAMES),
    "colour": len(COLOURS),
    "ground": len(GROUNDS),
    "ground colour": len(COLOURS),
    "rotated": 2,
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows, as indices into the lists above."""

    thing: int
    colour: int
    ground: int
    ground_colour: int
    rotated: int

    @property
    def answers(self) -> tuple[int, ...]:
        """In the order of ``ATTRIBUTES``."""
        return (self.thing, self.colour, self.ground, self.ground_colour, self.rotated)


def scene(index: int) -> Scene:
    """The scene of picture ``index``; its thing is ``index % 16``."""
    rng = np.random.default_rng((SEED, index))
    thing = index % len(CLASS_NAMES)
    colour, ground_colour = rng.choice(len(COLOURS), 2, replace=False)
    turned = CLASS_NAMES[thing] not in ROUND and rng.random() < 0.5
    return Scene(thing, int(colour), int(rng.integers(len(GROUNDS))), int(ground_colour), int(turned))


def sentence(index: int) -> str:
    """A sentence that says all of it; how it is put is drawn too."""
    return spoken(scene(index), np.random.default_rng((SEED, index, 1)))


def spoken(shown: Scene, rng: np.random.Generator) -> str:
    """One of several ways to say a scene."""
    colours = tuple(COLOURS)
    colour, ground = colours[shown.colour], f"{colours[shown.ground_colour]} {GROUNDS[shown.ground]}"
    one = "an" if colour[0] in "aeiou" else "a"
    on = ground if GROUNDS[shown.ground] in ("stripes", "dots") else f"a{'n' if ground[0] in 'aeiou' else ''} {ground}"
    thing = SPOKEN[shown.thing]
    if not shown.rotated:
        return (f"{one} {colour} {thing} on {on}", f"on {on}, {one} {colour} {thing}")[int(rng.integers(2))]
    return (f"{one} {colour} {thing} on {on}, rotated", f"a rotated {colour} {thing} on {on}")[int(rng.integers(2))]


def picture(index: int) -> NDArray[np.uint8]:
    """Picture ``index``: uint8 (64, 64, 3)."""
    shown, rng = scene(index), np.random.default_rng((SEED, index, 2))
    name = CLASS_NAMES[shown.thing]
    radius = rng.uniform(17.0, 22.0)
    room = SIZE / 2 - radius - 4.0
    centre = SIZE / 2 + rng.uniform(-room, room, 2)
    turn = math.radians(rng.uniform(28.0, 42.0) * rng.choice((-1, 1)) if shown.rotated else rng.uniform(-6.0, 6.0))
    mask = (glyph_mask if name in GLYPHS else shape_mask)(name, rng, radius, centre, turn)
    alpha = np.asarray(mask.reduce(OVERSAMPLING), np.float64)[..., None] / 255.0  # (64, 64, 1)
    hues = tuple(COLOURS.values())
    # Apart in luminance too, and never so dark or so light that a colour has no name.
    bright = rng.random() < 0.5
    ink, ground = (0.7, 0.34) if bright else (0.36, 0.72)
    first = colour_of(rng, hues[shown.ground_colour], ground)
    second = colour_of(rng, hues[shown.ground_colour], ground + (-0.13 if bright else 0.13))
    pattern = BACKGROUNDS[shown.ground](rng)[..., None]
    back = first * (1.0 - pattern) + second * pattern
    front = colour_of(rng, hues[shown.colour] + rng.uniform(-0.012, 0.012), ink)
    return np.round(255 * np.clip(back * (1.0 - alpha) + front * alpha, 0.0, 1.0)).astype(np.uint8)


def pictures(first: int, count: int) -> NDArray[np.uint8]:
    """Pictures ``first`` to ``first + count``: uint8 (count, 64, 64, 3)."""
    return np.stack([picture(i) for i in range(first, first + count)])


def answers(first: int, count: int) -> NDArray[np.int64]:
    """What a judge should see in these pictures: (count, attributes)."""
    return np.array([scene(i).answers for i in range(first, first + count)], np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="how many pictures")
    parser.add_argument("--first", type=int, default=0, help="index of the first")
    parser.add_argument("--out", type=Path, required=True, help="a .png to look at; the sentences are printed")
    options = parser.parse_args()
    contact_sheet(pictures(options.first, options.count), 8).save(options.out)
    for index in range(options.first, options.first + options.count):
        print(f"{index}: {sentence(index)}")


if __name__ == "__main__":
    main()
