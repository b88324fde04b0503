"""FastVAR: cached token pruning (paper section 3; fact sheet section 4).

At the last scales each sub-layer computes only the tokens that stand out most; the others take the same sub-layer's
output at an earlier scale, resized. Keys and values of pruned tokens never reach the tapes. The last scales may also be
skipped. Everything is matched by scale index, so grids need not be square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nextscale.plan.editing import computed_tokens, drop_steps, drop_unread, map_layers, retape
from nextscale.plan.errors import PlanError
from nextscale.plan.schedules import tokens
from nextscale.plan.types import Cache, Layer, Plan, Step, SubLayer


def kept_tokens(n: int, ratio: float) -> int:
    """How many of ``n`` tokens stay when ``ratio`` of them is pruned; at least 1 for a ratio below 1."""
    return n - int(n * ratio)


@dataclass(frozen=True)
class FastVAR:
    """``ratios[scale]`` of the tokens is pruned at a scale; the restore caches are written at ``cache_scale``.

    ``layers`` is the first and last layer that prune (None: all), ``sub_layers`` those of a block that do (None: all),
    ``skip`` the scales that do not run at all. Scales and layers below 0 count from the end. Calling it on a plan
    returns the pruned plan, or raises :class:`PlanError` where the two do not fit.
    """

    ratios: Mapping[int, float]
    cache_scale: int
    layers: tuple[int, int] | None = None
    sub_layers: tuple[str, ...] | None = None
    skip: tuple[int, ...] = ()

    def __call__(self, plan: Plan) -> Plan:
        return _Applied(self, plan).plan()


class _Applied:
    """A FastVAR with the numbers of one plan: every index counted from 0, and checked."""

    def __init__(self, method: FastVAR, plan: Plan) -> None:
        self.before = plan
        scales = len(plan.schedule)
        self.skip = {_index(scale, scales, "scale") for scale in method.skip}
        self.ratios = {_index(scale, scales, "scale"): ratio for scale, ratio in method.ratios.items()}
        self.cache_scale = _index(method.cache_scale, scales, "scale")
        self.layers = method.layers
        self.sub_layers = method.sub_layers
        if len(self.ratios) != len(method.ratios):
            raise PlanError(f"a scale is named twice in the ratios {dict(method.ratios)} of a plan of {scales} scales")
        if len(self.skip) != len(method.skip):
            raise PlanError(f"a scale is named twice in the skip {method.skip} of a plan of {scales} scales")
        self._check()

    def _check(self) -> None:
        """Every option, also those that a ratio of 0 would never come to."""
        run = {step.scale for step in self.before.steps}
        for scale, ratio in self.ratios.items():
            if not 0 <= ratio < 1:
                raise PlanError(f"scale {scale} cannot be pruned by {ratio}: a ratio is 0 or more and below 1")
            if scale in self.skip:
                raise PlanError(f"scale {scale} is both pruned and skipped: name it once")
            if scale not in run:
                raise PlanError(f"scale {scale} is to be pruned, but the plan does not run it")
            if scale <= self.cache_scale:
                raise PlanError(
                    f"scale {scale} cannot be restored from cache scale {self.cache_scale}: "
                    "the cache scale must come before every pruned scale"
                )
        if self.ratios and self.cache_scale in self.skip:
            raise PlanError(f"cache scale {self.cache_scale} is skipped: the restore caches would never be written")
        if gone := self.skip - run:
            raise PlanError(f"scale {min(gone)} is to be skipped, but the plan does not run it")
        if self.sub_layers == ():
            raise PlanError("sub_layers names none that prunes: name one or more, or leave it out for all")
        for name in sorted({step.weight_set for step in self.before.steps if step.scale in (self.ratios or run)}):
            self._layer_range(name)
            self._chosen_sub_layers(name)

    def plan(self) -> Plan:
        """Prune, write the caches, shorten the tapes, drop the skipped scales."""
        skipped = [step.order for step in self.before.steps if step.scale in self.skip]
        plan = map_layers(self.before, self._pruned)
        plan = self._with_caches(plan)
        plan = retape(plan, lambda step, layer: 0 if step.order in skipped else computed_tokens(step, layer))
        plan = drop_unread(drop_steps(plan, skipped) if skipped else plan)
        return replace(plan, methods=(*plan.methods, self._description()))

    def _pruned(self, step: Step, layer: Layer) -> Layer:
        ratio = self.ratios.get(step.scale, 0.0)
        kept = kept_tokens(step.tokens_in, ratio)
        if kept == step.tokens_in or layer.index not in self._layer_range(step.weight_set):
            return layer
        if step.kind != "next_scale" or step.tokens_in != tokens(step.grid):
            raise PlanError(
                f"step {step.order} ({step.kind}) cannot be pruned: it is more than the tokens of one scale"
            )
        chosen = self._chosen_sub_layers(step.weight_set)
        return replace(
            layer,
            sub_layers=tuple(self._prune(s, step, layer, kept) if s.name in chosen else s for s in layer.sub_layers),
        )

    def _prune(self, sub: SubLayer, step: Step, layer: Layer, kept: int) -> SubLayer:
        if sub.kept is not None:
            raise PlanError(f"step {step.order}, layer {layer.index}, {sub.name}: another method pruned it already")
        return replace(sub, kept=kept, cache=self._cache_id(step, layer, sub))

    def _layer_range(self, weight_set: str) -> range:
        depth = self.before.model(weight_set).depth
        if self.layers is None:
            return range(depth)
        first, last = (_index(layer, depth, "layer") for layer in self.layers)
        if first > last:
            raise PlanError(f"layers {first} to {last} are asked for: the first comes after the last")
        return range(first, last + 1)

    def _chosen_sub_layers(self, weight_set: str) -> tuple[str, ...]:
        there = self.before.model(weight_set).sub_layers
        chosen = there if self.sub_layers is None else self.sub_layers
        unknown = [name for name in chosen if name not in there]
        if unknown:
            raise PlanError(f"sub-layer {unknown[0]!r} is to be pruned; the model's blocks have {', '.join(there)}")
        return chosen

    def _cache_id(self, step: Step, layer: Layer, sub: SubLayer) -> str:
        """``<sub-layer>.<layer>``; where a plan has several models, their caches are kept apart by name."""
        prefix = f"{step.weight_set}." if len(self.before.models) > 1 else ""
        return f"{prefix}{sub.name}.{layer.index:02d}"

    def _with_caches(self, plan: Plan) -> Plan:
        """The plan with each cache that a pruned sub-layer reads written by the same sub-layer at the cache scale."""
        wanted: dict[tuple[str, int, str], str] = {}  # (weight set, layer, sub-layer): cache id
        for step in plan.steps:
            for layer in step.layers:
                for sub in layer.sub_layers:
                    if step.scale in self.ratios and sub.kept is not None and sub.cache:
                        wanted[step.weight_set, layer.index, sub.name] = sub.cache
        written = {
            sub.cache: step.scale
            for step in plan.steps
            for layer in step.layers
            for sub in layer.sub_layers
            if sub.kept is None and sub.cache
        }
        caches: dict[str, Cache] = {}

        def write(step: Step, layer: Layer) -> Layer:
            if step.scale != self.cache_scale or step.kind == "mask":
                return layer
            return replace(layer, sub_layers=tuple(leave(step, layer, sub) for sub in layer.sub_layers))

        def leave(step: Step, layer: Layer, sub: SubLayer) -> SubLayer:
            cache = wanted.get((step.weight_set, layer.index, sub.name))
            if cache is None:
                return sub
            if sub.kept is not None:
                raise PlanError(
                    f"cache scale {self.cache_scale} is pruned itself: layer {layer.index} has no full output"
                )
            if written.get(cache, self.cache_scale) != self.cache_scale:
                raise PlanError(f"restore cache {cache!r} is written at scale {written[cache]} by another method")
            caches[cache] = Cache(cache, step.weight_set, layer.index, sub.name, step.grid)
            return replace(sub, cache=cache)

        plan_with_writers = map_layers(plan, write)
        for (weight_set, index, name), cache in wanted.items():
            if cache not in caches:
                raise PlanError(
                    f"layer {index} of {weight_set!r} prunes {name}, but does not run at cache scale "
                    f"{self.cache_scale}: nothing could restore its tokens"
                )
        others = tuple(cache for cache in plan.caches if cache.id not in caches)
        return replace(plan_with_writers, caches=(*others, *caches.values()))

    def _description(self) -> str:
        parts = [f"ratios={self.ratios}", f"cache_scale={self.cache_scale}"]
        parts += [f"layers={self.layers}"] if self.layers else []
        parts += [f"sub_layers={self.sub_layers}"] if self.sub_layers else []
        parts += [f"skip={sorted(self.skip)}"] if self.skip else []
        return f"FastVAR({', '.join(parts)})"


def _index(index: int, count: int, what: str) -> int:
    """An index that may count from the end, counted from 0."""
    if not -count <= index < count:
        raise PlanError(f"{what} {index} is asked for; the plan has {count}, numbered 0 to {count - 1}")
    return index % count
