from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from nextscale.compare.charts import HEIGHT, Bar, Series, bar_chart

SVG = "{http://www.w3.org/2000/svg}"


def rects(svg: str) -> list[ET.Element]:
    return ET.fromstring(svg).findall(f"{SVG}rect")


def heights(*values: float, **options: bool | float) -> list[float]:
    series = Series("a", "#123456", tuple(Bar(v, f"<{v}>") for v in values))
    found = bar_chart([str(i) for i in range(len(values))], [series], "ms", **options)  # type: ignore[arg-type]
    return [float(rect.get("height", "nan")) for rect in rects(found)]


def test_bars_are_as_high_as_their_values() -> None:
    assert heights(1.0, 2.0, 4.0) == pytest.approx([HEIGHT / 4, HEIGHT / 2, HEIGHT])


def test_a_logarithmic_scale_starts_at_a_power_of_ten() -> None:
    low, middle, high = heights(1e-6, 1e-5, 1e-4, logarithmic=True)
    assert high == pytest.approx(HEIGHT)
    assert middle == pytest.approx(HEIGHT / 2)
    assert low == pytest.approx(0.5)  # a bar of height nothing can still be pointed at


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_any_number_can_be_drawn(value: float, logarithmic: bool) -> None:
    for height in heights(value, 1.0, logarithmic=logarithmic, limit=0.5):
        assert 0 < height <= HEIGHT


def test_a_group_without_a_bar_keeps_its_place() -> None:
    both = [Series("a", "#111", (Bar(1, "a0"), None)), Series("b", "#222", (Bar(1, "b0"), Bar(1, "b1")))]
    found = rects(bar_chart(["0", "1"], both, "ms"))
    assert [rect.findtext(f"{SVG}title") for rect in found] == ["a0", "b0", "b1"]
    places = [float(rect.get("x", "nan")) for rect in found]
    assert places[2] - places[1] == pytest.approx(3 * (places[1] - places[0]))  # two bars and a gap
