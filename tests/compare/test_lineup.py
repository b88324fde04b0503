"""Which sides there are, on bundles of drawn graphs: nothing is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import bundles

from nextscale.compare.lineup import FULL, computed_share, make_specs, without_methods
from nextscale.compare.sides import same_numbers
from nextscale.plan.errors import InputError


def test_one_full_bundle_has_the_full_eager_model_as_its_reference(tmp_path: Path) -> None:
    specs, _ = make_specs([bundles.write_bundle(tmp_path / "a", bundles.tiny_plan(pruned=False))])
    assert [(s.name, s.reference) for s in specs] == [(FULL, None), ("a", FULL)]


def test_bundles_of_one_plan_share_a_reference(tmp_path: Path) -> None:
    paths = [bundles.write_bundle(tmp_path / name) for name in ("a", "b")]
    specs, _ = make_specs(paths)
    assert [(s.name, s.reference) for s in specs] == [
        (FULL, None),
        ("eager as a", None),
        ("a", "eager as a"),
        ("b", "eager as a"),
    ]
    assert specs[1].plan.methods
    assert not specs[0].plan.methods


def test_the_full_chain_comes_back_from_a_pruned_one() -> None:
    full, pruned = (bundles.tiny_plan(pruned=p) for p in (False, True))
    assert same_numbers(without_methods(pruned), full)
    assert not same_numbers(pruned, full)
    assert computed_share(full) == 1.0
    assert computed_share(pruned) == pytest.approx((1 + 4 + 6 + 8) / 27)


@pytest.mark.parametrize(
    "folders",
    [["a/same", "b/same"], ["eager full"], ["eager-full"], ["Eager Full"], ["x y", "x-y"], ["b", "eager as b"]],
    ids=str,
)
def test_sides_that_would_share_their_pictures_are_refused(tmp_path: Path, folders: list[str]) -> None:
    paths = [bundles.write_bundle(tmp_path / folder) for folder in folders]
    with pytest.raises(InputError, match="two sides would have the same name in the report"):
        make_specs(paths)


def test_bundles_of_two_models_are_refused(tmp_path: Path) -> None:
    plan = bundles.tiny_plan()
    step = replace(plan.steps[0], sampling=replace(plan.steps[0].sampling, top_k=5))  # type: ignore[type-var]
    other = replace(plan, steps=(step, *plan.steps[1:]))
    paths = [bundles.write_bundle(tmp_path / "a", plan), bundles.write_bundle(tmp_path / "b", other)]
    with pytest.raises(InputError, match="b and a are not of one model"):
        make_specs(paths)


def test_a_precision_without_a_tolerance_is_refused(tmp_path: Path) -> None:
    path = bundles.write_bundle(tmp_path / "a")
    manifest = bundles.make_manifest(path, bundles.tiny_plan(), (), {})
    bundles.write_manifest(
        path, replace(manifest, precision="bf16", graphs=bundles.derive_graphs(manifest.plan, "bf16"))
    )
    with pytest.raises(InputError, match="a is bf16, for which no tolerance is known"):
        make_specs([path])


def test_no_bundle_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no bundle"):
        make_specs([])
