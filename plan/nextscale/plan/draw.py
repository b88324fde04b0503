"""A plan's schedule as a self-contained SVG: which layers compute how many tokens at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from nextscale.plan.cost import plan_cost
from nextscale.plan.schedules import tokens
from nextscale.plan.tables import figure, kept_counts, kept_text, span
from nextscale.plan.types import Grid, Plan, Step, SubLayer

COMPUTED, RESTORED, CACHED, ABSENT, INK = "#2f6db5", "#f2c491", "#1d4677", "#e4e6ea", "#22262c"
LEFT, TOP, RIGHT = 86, 96, 24
CELL_HEIGHTS = (16, 5)  # of a layer, when there are few and when there are many
GAP = 8
BARS = 90  # height of the FLOP bars


def draw_schedule(plan: Plan) -> str:
    """The SVG text. A column per step (scales that are skipped stay as empty columns), a band per layer.

    In each band the dark part is the share of its work on tokens that is computed, the light part what is restored
    from a cache. The column that writes the caches is marked. Below are the FLOPs of each step.
    """
    return _Picture(plan).text()


class _Picture:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.depth = max(model.depth for _, model in plan.models)
        few, many = CELL_HEIGHTS
        self.cell = max(many, min(few, 480 // self.depth))
        self.columns = _columns(plan)
        self.widths = [_width(plan.schedule[scale]) for scale, _ in self.columns]
        self.flops = [graph.total_flops for graph in plan_cost(plan).steps]
        self.bottom = TOP + self.depth * self.cell

    def text(self) -> str:
        width = max(560, round(LEFT + sum(self.widths) + GAP * len(self.widths) + RIGHT))
        height = self.bottom + BARS + 110
        body = "\n".join([*self._head(), *self._layers(), *self._columns(), *self._legend(height)])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">\n'
            f"<title>{escape(self.plan.name)}</title>\n"
            f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
        )

    def _head(self) -> Iterator[str]:
        yield _text(16, 28, self.plan.name, size=17, weight="600")
        said = "; ".join(self.plan.methods) or "every token of every layer is computed"
        yield _text(16, 47, said, fill="#5b6470")

    def _layers(self) -> Iterator[str]:
        """Numbers of the layers on the left, as many as fit."""
        every = max(1, round(16 / self.cell))
        for layer in range(0, self.depth, every):
            yield _text(LEFT - 8, TOP + (layer + 0.5) * self.cell + 4, str(layer), anchor="end", fill="#5b6470")
        yield _text(16, TOP + 10, "layer", fill="#5b6470")

    def _columns(self) -> Iterator[str]:
        x = float(LEFT)
        most = max(self.flops)
        for (scale, step), width in zip(self.columns, self.widths, strict=True):
            middle, grid = x + width / 2, self.plan.schedule[scale]
            yield _text(middle, TOP - 24, f"{grid[0]}×{grid[1]}", anchor="middle", weight="600")
            yield _text(middle, TOP - 10, f"{tokens(grid)}", anchor="middle", fill="#5b6470")
            if step is None:
                yield _rect(x, TOP, width, self.depth * self.cell, "none", f' stroke="{ABSENT}" stroke-dasharray="3 3"')
                yield _text(middle, self.bottom + 14, "skipped", anchor="middle", fill="#5b6470")
            else:
                yield from self._bands(step, x, width)
                if kept_counts(step):
                    yield _text(middle, self.bottom + 14, f"{span(kept_counts(step))} kept", anchor="middle")
                yield from self._bar(step, x, width, most)
            x += width + GAP

    def _bands(self, step: Step, x: float, width: float) -> Iterator[str]:
        """One band per layer, halved where sub-layers differ."""
        layers = {layer.index: layer for layer in step.layers}
        for index in range(self.depth):
            y = TOP + index * self.cell
            if index not in layers:
                yield _rect(x, y, width, self.cell - 1, ABSENT)
                continue
            parts = layers[index].sub_layers
            shares = [_share(step, sub) for sub in parts]
            if len(set(shares)) == 1:
                shares = shares[:1]
            height = (self.cell - 1) / len(shares)
            writes = any(sub.cache and sub.kept is None for sub in parts)
            for i, share in enumerate(shares):
                yield _rect(x, y + i * height, width * share, height, CACHED if writes else COMPUTED)
                if share < 1:
                    yield _rect(x + width * share, y + i * height, width * (1 - share), height, RESTORED)

    def _bar(self, step: Step, x: float, width: float, most: float) -> Iterator[str]:
        flops, base = self.flops[step.order], self.bottom + 28 + BARS
        height = max(1.0, BARS * flops / most)
        yield _rect(x, base - height, width, height, "#9aa7b8", f"<title>step {step.order}: {kept_text(step)}</title>")
        yield _text(x + width / 2, base + 14, figure(flops / 1e9), anchor="middle", fill="#5b6470")

    def _legend(self, height: float) -> Iterator[str]:
        yield _text(16, self.bottom + 28 + BARS + 14, "GFLOP", fill="#5b6470")
        x, y = 16.0, height - 26
        meanings = {COMPUTED: "computed", CACHED: "computed and cached", RESTORED: "restored", ABSENT: "not run"}
        for colour, meaning in meanings.items():
            yield _rect(x, y, 12, 12, colour)
            yield _text(x + 18, y + 10, meaning)
            x += 40 + 7 * len(meaning)


def _columns(plan: Plan) -> list[tuple[int, Step | None]]:
    """Scale and step of each column; a scale that no step runs has None."""
    columns: list[tuple[int, Step | None]] = [(step.scale, step) for step in plan.steps]
    ran = {step.scale for step in plan.steps}
    columns += [(scale, None) for scale in range(len(plan.schedule)) if scale not in ran]
    return sorted(columns, key=lambda column: (column[0], column[1].order if column[1] else 0))


def _width(grid: Grid) -> float:
    """Columns grow with the side of a scale: areas then say how many tokens there are."""
    return max(44.0, min(4.0 * math.sqrt(tokens(grid)), 150.0))


def _share(step: Step, sub: SubLayer) -> float:
    return 1.0 if sub.kept is None else sub.kept / step.tokens_in


def _rect(x: float, y: float, width: float, height: float, fill: str, extra: str = "") -> str:
    """A rectangle; ``extra`` is more attributes (after a space) or a child element."""
    attributes, child = (extra, "") if not extra.startswith("<") else ("", extra)
    head = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{attributes}'
    return f"{head}>{child}</rect>" if child else f"{head}/>"


def _text(
    x: float, y: float, text: str, anchor: str = "start", fill: str = INK, size: int = 0, weight: str = ""
) -> str:
    style = (f' font-size="{size}"' if size else "") + (f' font-weight="{weight}"' if weight else "")
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}"{style}>{escape(text)}</text>'
