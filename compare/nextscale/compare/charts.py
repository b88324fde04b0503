"""Bar charts as inline SVG: groups of bars with whiskers, on a linear or a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

HEIGHT, LEFT, TOP, BOTTOM = 220, 64, 32, 34
INK, PALE, LINE = "#22262c", "#5b6470", "#e4e6ea"


@dataclass(frozen=True)
class Bar:
    """``low`` and ``high`` are the ends of its whisker, None without one; ``hint`` is shown under the pointer."""

    value: float
    hint: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A row of bars of one colour, one for each group; None where a group has none."""

    name: str
    colour: str
    bars: tuple[Bar | None, ...]


def bar_chart(
    groups: Sequence[str], series: Sequence[Series], unit: str, logarithmic: bool = False, limit: float | None = None
) -> str:
    """The SVG text. ``limit`` draws a dashed line across; ``unit`` names the axis."""
    return _Chart(groups, series, unit, logarithmic, limit).text()


class _Chart:
    def __init__(
        self, groups: Sequence[str], series: Sequence[Series], unit: str, logarithmic: bool, limit: float | None
    ) -> None:
        self.groups, self.series, self.unit, self.limit = groups, series, unit, limit
        self.bar = max(4.0, min(18.0, 640 / (len(groups) * (len(series) + 1))))
        self.group = max(self.bar * (len(series) + 1), 52.0)
        values = [v for s in series for b in s.bars if b for v in (b.value, b.high) if v is not None]
        values += [] if limit is None else [limit]
        finite = [v for v in values if math.isfinite(v)]
        self.logarithmic = logarithmic
        self.top = max(finite, default=1.0) or 1.0
        self.base = 0.0
        if logarithmic:
            least = min((v for v in finite if v > 0), default=self.top)
            self.base = 10 ** math.floor(math.log10(least))
            self.top = 10 ** math.ceil(math.log10(max(self.top, 10 * self.base)))

    def text(self) -> str:
        width = LEFT + self.group * len(self.groups) + 12
        height = TOP + HEIGHT + BOTTOM
        body = "\n".join([*self._axis(width), *self._bars(), *self._limit(width)])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="11" fill="{INK}">\n{body}\n</svg>'
        )

    def _y(self, value: float) -> float:
        """Where a value stands; what is no number or too large stands at the top."""
        if not math.isfinite(value):
            return TOP
        if not self.logarithmic:
            share = value / self.top
        else:
            share = math.log(max(value, self.base) / self.base) / math.log(self.top / self.base)
        return TOP + HEIGHT * (1 - min(1.0, share))

    def _ticks(self) -> list[float]:
        if self.logarithmic:
            steps = round(math.log10(self.top / self.base))
            return [self.base * 10**i for i in range(0, steps + 1, max(1, steps // 6))]
        step = 10 ** math.floor(math.log10(self.top / 2))
        step *= next(m for m in (1, 2, 5, 10) if self.top / (step * m) <= 5)
        return [i * step for i in range(int(self.top / step) + 1)]

    def _axis(self, width: float) -> Iterator[str]:
        yield f'<text x="{LEFT - 8}" y="12" text-anchor="end" fill="{PALE}">{escape(self.unit)}</text>'
        for tick in self._ticks():
            y = self._y(tick)
            yield f'<line x1="{LEFT}" y1="{y:g}" x2="{width - 12:g}" y2="{y:g}" stroke="{LINE}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end" fill="{PALE}">{tick:g}</text>'

    def _bars(self) -> Iterator[str]:
        for i, name in enumerate(self.groups):
            x = LEFT + self.group * i + (self.group - self.bar * len(self.series)) / 2
            middle, below = LEFT + self.group * (i + 0.5), TOP + HEIGHT + 16
            yield f'<text x="{middle:g}" y="{below}" text-anchor="middle" fill="{PALE}">{escape(name)}</text>'
            for series in self.series:
                bar = series.bars[i]
                if bar is not None:
                    yield from self._one(bar, x, series.colour)
                x += self.bar

    def _one(self, bar: Bar, x: float, colour: str) -> Iterator[str]:
        y, floor, middle = self._y(bar.value), TOP + HEIGHT, x + (self.bar - 1) / 2
        yield (
            f'<rect x="{x:g}" y="{y:g}" width="{self.bar - 1:g}" height="{max(floor - y, 0.5):g}" fill="{colour}">'
            f"<title>{escape(bar.hint)}</title></rect>"
        )
        if bar.low is not None and bar.high is not None:
            low, high = self._y(bar.low), self._y(bar.high)
            yield f'<line x1="{middle:g}" y1="{low:g}" x2="{middle:g}" y2="{high:g}" stroke="{INK}"/>'

    def _limit(self, width: float) -> Iterator[str]:
        if self.limit is not None:
            y = self._y(self.limit)
            yield (
                f'<line x1="{LEFT}" y1="{y:g}" x2="{width - 12:g}" y2="{y:g}" stroke="#b3261e" stroke-dasharray="5 4"/>'
                f'<text x="{width - 14:g}" y="{y - 4:g}" text-anchor="end" fill="#b3261e">allowed</text>'
            )
