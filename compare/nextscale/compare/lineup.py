"""Which sides a comparison has: eager in full, eager as each bundle plans it, and each of them in every column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nextscale.compare.columns import COMPILE, Columns
from nextscale.compare.sides import Spec, same_numbers
from nextscale.export.verify import TOLERANCES
from nextscale.plan.errors import InputError
from nextscale.plan.recipes import full_plan
from nextscale.plan.types import Plan
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import Manifest

FULL = "eager full"
USUAL = Columns(("eager", "onnxruntime"), "cpu")


def make_specs(bundles: Sequence[Path], columns: Columns = USUAL) -> tuple[list[Spec], list[Manifest]]:
    """Every side, ``eager full`` first, then the other eager ones, these compiled, the bundles; the bundles' manifests.

    A bundle is a side for each backend, and named after it where there are several. Bundles that run the same plan in
    the same precision share a reference. Raises :class:`~nextscale.plan.errors.InputError` for bundles that cannot be
    compared with each other.
    """
    if not bundles:
        raise InputError("no bundle to compare: name one or more folders under engines/")
    manifests = [open_bundle(path).manifest for path in bundles]
    names = [path.resolve().name for path in bundles]
    full = without_methods(manifests[0].plan)
    eager = [Spec(FULL, full, manifests[0].precision)]
    exported = []
    for path, name, manifest in zip(bundles, names, manifests, strict=True):
        _check(name, manifest, names[0], full)
        reference = next((s for s in eager if _runs(s, manifest)), None)
        if reference is None:
            reference = Spec(f"eager as {name}", manifest.plan, manifest.precision)
            eager.append(reference)
        for backend in columns.backends:
            side = f"{name} {backend}" if len(columns.backends) > 1 else name
            exported.append(Spec(side, manifest.plan, manifest.precision, path, reference.name, backend))
    compiled = [_compiled(spec) for spec in eager] if columns.compiled else []
    specs = [*eager, *compiled, *exported]
    _check_names([spec.name for spec in specs])
    return specs, manifests


def file_part(text: str) -> str:
    """What stands for a side or a class in the name of a file."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)


def without_methods(plan: Plan) -> Plan:
    """The full chain of a plan's model: every scale, every layer, every token, drawn in the same way."""
    if len(plan.models) != 1 or not any(step.sampling for step in plan.steps):
        raise InputError(f"{plan.name}: only plans of one model that sample tokens can be compared yet")
    return replace(full_plan(plan), name="full")


def computed_share(plan: Plan) -> float:
    """Tokens that the sub-layers compute, as a share of those of the full chain."""
    done, full = (
        sum(
            step.tokens_in if sub.kept is None else sub.kept
            for step in p.steps
            for layer in step.layers
            for sub in layer.sub_layers
        )
        for p in (plan, without_methods(plan))
    )
    return done / full


def _compiled(eager: Spec) -> Spec:
    name = f"{COMPILE} {eager.name.removeprefix('eager ')}"
    return Spec(name, eager.plan, eager.precision, None, eager.name, COMPILE)


def _runs(spec: Spec, manifest: Manifest) -> bool:
    return spec.precision == manifest.precision and same_numbers(spec.plan, manifest.plan)


def _check_names(names: Sequence[str]) -> None:
    """Every side has records and pictures of its own; some file systems take A for a."""
    seen: dict[str, str] = {}
    for name in names:
        key = file_part(name).casefold()
        if key in seen:
            raise InputError(
                f"two sides would have the same name in the report, {seen[key]!r} and {name!r}: "
                "rename a bundle's folder"
            )
        seen[key] = name


def _check(name: str, manifest: Manifest, first: str, full: Plan) -> None:
    if manifest.precision not in TOLERANCES:
        raise InputError(
            f"{name} is {manifest.precision}, for which no tolerance is known: compare bundles in "
            f"{' or '.join(TOLERANCES)}"
        )
    if not same_numbers(without_methods(manifest.plan), full):
        raise InputError(
            f"{name} and {first} are not of one model: their sizes, schedule, guidance or top-k differ; "
            "compare bundles of one checkpoint"
        )
