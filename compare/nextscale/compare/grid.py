"""Pictures side by side with their labels, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK, PALE, PAPER = "#22262c", "#5b6470", "#ffffff"
LEAST_SIDE = 112  # smaller pictures are enlarged by a whole number
GAP, MARGIN, LINE = 4, 22, 20

Picture = NDArray[np.uint8]


def labelled_grid(
    columns: Sequence[str], labels: Sequence[str], pictures: Sequence[Sequence[Picture]], title: str, across: int = 4
) -> Image.Image:
    """``pictures[i]`` (one (H, W, 3) for each of ``columns``) stand side by side under ``labels[i]``.

    ``across`` such groups stand in a row, in the order in which they are given.
    """
    scale = max(1, -(-LEAST_SIDE // min(pictures[0][0].shape[:2])))
    height, width = (scale * side for side in pictures[0][0].shape[:2])
    across = min(across, len(labels))
    group = (len(columns) * (width + GAP) - GAP, LINE + height)
    rows = -(-len(labels) // across)
    head = MARGIN + 2 * LINE + 6
    size = (MARGIN + across * (group[0] + MARGIN), head + rows * (group[1] + MARGIN // 2) + MARGIN // 2)
    sheet = Image.new("RGB", size, PAPER)
    draw, fonts = ImageDraw.Draw(sheet), [ImageFont.load_default(points) for points in (18, 13)]
    draw.text((MARGIN, MARGIN - 8), title, fill=INK, font=fonts[0])
    for i, (label, shown) in enumerate(zip(labels, pictures, strict=True)):
        x = MARGIN + (i % across) * (group[0] + MARGIN)
        y = head + (i // across) * (group[1] + MARGIN // 2)
        draw.text((x, y), label, fill=INK, font=fonts[1])
        for k, (name, picture) in enumerate(zip(columns, shown, strict=True)):
            left = x + k * (width + GAP)
            if i < across:
                draw.text((left, head - LINE), name, fill=PALE, font=fonts[1])
            sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, y + LINE))
    return sheet
