"""Whether a plan is consistent: everything that is read was written, everything that is written fits and is read.

Checks that need the memory of a deployment (which bytes lie where) are in :mod:`nextscale.plan.aliasing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from nextscale.plan.agreement import disagreements
from nextscale.plan.editing import computed_tokens, drop_unread
from nextscale.plan.errors import PlanError
from nextscale.plan.resize import RESIZES
from nextscale.plan.schedules import tokens
from nextscale.plan.types import Cache, Layer, Model, Plan, Sampling, Segment, Step, SubLayer, Tape, TapeWrite

KINDS = ("next_scale", "prefill", "mask")
RULES = ("code_sum", "last_codes", "none")
STAGES = ("guidance", "temperature", "top_k", "top_p")
FILTERS = {"top_k", "top_p"}  # one piece of graph: top-p sums the sorted values that top-k leaves


def validate(plan: Plan) -> Plan:
    """The plan itself; raises :class:`PlanError` with the first three problems where there are any."""
    problems = find_problems(plan)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise PlanError(f"plan {plan.name!r} contradicts itself: {'; '.join(problems[:3])}{more}")
    return plan


def find_problems(plan: Plan) -> list[str]:
    """Everything that is wrong with a plan, each as a sentence that names its place; empty for a good one."""
    problems = [*_names(plan), *_guidance(plan), *disagreements(plan)]
    if problems:
        return problems  # what follows would stumble over the same names
    for step in plan.steps:
        problems += [f"step {step.order}: {problem}" for problem in _step(plan, step)]
    if not problems:
        problems += [*_chain(plan), *_flow(plan), *_unread(plan)]
    return problems


def _names(plan: Plan) -> Iterator[str]:
    """Names are there, once each, and refer to what exists."""
    models = dict(plan.models)
    ids = [("weight set", list(models)), ("tape", [t.id for t in plan.tapes]), ("cache", [c.id for c in plan.caches])]
    if len(models) < len(plan.models):
        yield "two weight sets have one name"
    for what, names in ids:
        yield from (f"{what} {name!r} is listed twice" for name in sorted({n for n in names if names.count(n) > 1}))
    owners: list[Tape | Cache] = [*plan.tapes, *plan.caches]
    for owner in owners:
        what = f"{type(owner).__name__.lower()} {owner.id!r}"
        if owner.weight_set not in models:
            yield f"{what} belongs to the unknown weight set {owner.weight_set!r}"
        elif not 0 <= owner.layer < models[owner.weight_set].depth:
            yield f"{what} belongs to layer {owner.layer}, and the model has {models[owner.weight_set].depth}"
    ran = {step.weight_set for step in plan.steps}
    yield from (f"weight set {name!r} is never run" for name in models if plan.steps and name not in ran)
    known_tapes, known_caches = set(ids[1][1]), set(ids[2][1])
    for step in plan.steps:
        if step.weight_set not in models:
            yield f"step {step.order} runs the unknown weight set {step.weight_set!r}"
        for layer in step.layers:
            used = {use.tape for use in layer.tape_uses}
            yield from (f"step {step.order} uses the unknown tape {t!r}" for t in sorted(used - known_tapes))
            caches = {sub.cache for sub in layer.sub_layers if sub.cache}
            yield from (
                f"step {step.order} uses the unknown restore cache {c!r}" for c in sorted(caches - known_caches)
            )


def _guidance(plan: Plan) -> Iterator[str]:
    if len(plan.guidance.weights) != len(plan.schedule):
        yield f"guidance has weights for {len(plan.guidance.weights)} scales, the schedule {len(plan.schedule)}"
    terms = 1 + len(plan.guidance.scales)
    for scale, weights in enumerate(plan.guidance.weights):
        if len(weights) != len(plan.guidance.rows) or any(len(weight) != terms for weight in weights):
            yield f"guidance at scale {scale} needs {terms} numbers for each of {len(plan.guidance.rows)} rows"
    if not plan.steps:
        yield "it has no steps"


def _step(plan: Plan, step: Step) -> Iterator[str]:
    """A step by itself: its numbers, its sampling, its layers."""
    model = plan.model(step.weight_set)
    if step.kind not in KINDS:
        yield f"kind {step.kind!r} is none of {', '.join(KINDS)}"
    if not 0 <= step.scale < len(plan.schedule):
        yield f"scale {step.scale} is not in the schedule of {len(plan.schedule)}"
    elif step.grid != plan.schedule[step.scale]:
        yield f"grid {step.grid} is not the schedule's {plan.schedule[step.scale]}"
    if step.tokens_out != (0 if step.sampling is None else tokens(step.grid)):
        yield f"{step.tokens_out} tokens come out of a grid of {tokens(step.grid)}"
    if step.tokens_in < max(1, step.tokens_out):
        yield f"{step.tokens_in} tokens go in and {step.tokens_out} come out"
    if not 1 <= step.guidance_rows <= len(plan.guidance.rows) or step.images < 1:
        yield f"{step.guidance_rows} guidance rows of {step.images} candidates cannot run"
    if (
        model.text is not None
        and model.text.use == "prefix"
        and step.order == 0
        and step.tokens_in != model.text.tokens
    ):
        yield f"{step.tokens_in} tokens go in, and the text that they are has {model.text.tokens}"
    if step.diffusion and (model.diffusion is None or step.sampling is None):
        lacks = "draws no codes" if step.sampling is None else "runs a model that has no residual diffusion"
        yield f"its codes are to be refined, and it {lacks}"
    if step.sampling is not None:
        yield from _sampling(plan, model, step.sampling)
    if step.next_input.rule not in RULES:
        yield f"the next input's rule {step.next_input.rule!r} is none of {', '.join(RULES)}"
    for mode in sorted({step.next_input.up, step.next_input.down} - RESIZES.keys()):
        yield f"the next input's resize mode {mode!r} is none of {', '.join(RESIZES)}"
    if step.next_input.phi is not None and not 0 <= step.next_input.phi < plan.tokenizer.phi:
        yield f"phi {step.next_input.phi} is asked for, the tokenizer has {plan.tokenizer.phi}"
    indices = [layer.index for layer in step.layers]
    if not indices or any(a >= b for a, b in pairwise(indices)) or not 0 <= indices[0] <= indices[-1] < model.depth:
        yield f"its layers {indices} are not layers 0 to {model.depth - 1} in order"
        return
    for layer in step.layers:
        yield from (f"layer {layer.index}: {problem}" for problem in _layer(plan, step, layer))


def _sampling(plan: Plan, model: Model, sampling: Sampling) -> Iterator[str]:
    if not 0 <= sampling.top_k <= model.vocabulary:
        yield f"top_k is {sampling.top_k}, of a vocabulary of {model.vocabulary}; 0 keeps all"
    if not set(sampling.order) <= set(STAGES) or len(set(sampling.order)) < len(sampling.order):
        yield f"the sampling order {sampling.order} must name each of {', '.join(STAGES)} at most once"
    if FILTERS & set(sampling.order) and ("top_k", "top_p") not in pairwise(sampling.order):
        yield f"the sampling order {sampling.order} must name top_p right after top_k, or neither"
    if sampling.smooth and not plan.tokenizer.codebook:
        yield "codes are to be mixed, and the tokenizer has no codebook: smooth needs one"
    if not 0 <= sampling.smooth_ratio <= 1:
        yield f"smooth_ratio is {sampling.smooth_ratio}: how far along the schedule a step is, from 0 to 1"


def _layer(plan: Plan, step: Step, layer: Layer) -> Iterator[str]:
    model = plan.model(step.weight_set)
    names = [sub.name for sub in layer.sub_layers]
    if not names or names != [name for name in model.sub_layers if name in names]:
        yield f"sub-layers {names} are not the model's {list(model.sub_layers)} in order"
    for sub in layer.sub_layers:
        yield from _sub_layer(plan, step, layer, sub)
    for used in ([segment.tape for segment in layer.past], [write.tape for write in layer.writes]):
        yield from (f"tape {name!r} is named twice" for name in sorted({n for n in used if used.count(n) > 1}))
    for use in layer.tape_uses:
        tape = plan.tape(use.tape)
        if tape.layer != layer.index:
            yield f"tape {use.tape!r} belongs to layer {tape.layer}"
        if tape.weight_set != step.weight_set and not (isinstance(use, Segment) and use.gate):
            yield f"tape {use.tape!r} belongs to weight set {tape.weight_set!r}, the step to {step.weight_set!r}"
        if use.length < 1 or use.start < 0:
            yield f"tape {use.tape!r}: {use.length} rows from row {use.start} (leave empty segments and writes out)"


def _sub_layer(plan: Plan, step: Step, layer: Layer, sub: SubLayer) -> Iterator[str]:
    if sub.kept is not None and not 1 <= sub.kept <= step.tokens_in:
        yield f"{sub.name} keeps {sub.kept} of {step.tokens_in} tokens"
    if sub.kept is not None and sub.cache is None:
        yield f"{sub.name} is pruned and has no restore cache"
    if sub.cache is None:
        return
    cache = plan.cache(sub.cache)
    if (cache.weight_set, cache.layer, cache.sub_layer) != (step.weight_set, layer.index, sub.name):
        yield f"{sub.name} uses restore cache {sub.cache!r} of another layer or sub-layer"
    if sub.kept is None and cache.grid != step.grid:
        yield f"{sub.name} writes restore cache {sub.cache!r} of grid {cache.grid} at grid {step.grid}"


def _chain(plan: Plan) -> Iterator[str]:
    """Each step hands on what the next one takes."""
    for order, step in enumerate(plan.steps):
        if step.order != order:
            yield f"step {order} says that its order is {step.order}"
    for before, after in pairwise(plan.steps):
        handed = before.next_input
        if handed.grid != after.grid and not (handed.rule == "none" and handed.grid is None):
            yield f"step {before.order} hands on the grid {handed.grid} and step {after.order} takes {after.grid}"
    if plan.steps[-1].next_input.grid is not None:
        yield f"the last step hands on the grid {plan.steps[-1].next_input.grid}, and nothing takes it"
    if plan.steps[-1].next_input.rule == "none":
        yield "the last step adds nothing to the picture"
    gathers = {gather.before: gather for gather in plan.gathers}
    if len(gathers) < len(plan.gathers):
        yield "two row gathers stand before one step"
    for gather in plan.gathers:
        if not 1 <= gather.before < len(plan.steps):
            yield f"a row gather stands before step {gather.before}, where there is nothing between two steps"
    for before, after in pairwise(plan.steps):
        found = gathers.get(after.order)
        if found is None and before.images != after.images:
            yield f"step {after.order} runs {after.images} candidates after {before.images}, and no row gather selects"
        elif found and (found.images_in, found.images_out) != (before.images, after.images):
            yield f"the row gather before step {after.order} does not match its {before.images} to {after.images}"


def _flow(plan: Plan) -> Iterator[str]:
    """Walks the steps in order: what is read was written, and writes go where the tape ends."""
    held = {tape.id: tape.prefilled for tape in plan.tapes}
    written: set[str] = set()
    for step in plan.steps:
        for layer in step.layers:
            place = f"step {step.order}, layer {layer.index}"
            for segment in layer.past:
                if segment.start + segment.length > held[segment.tape]:
                    end = segment.start + segment.length
                    yield f"{place} reads tape {segment.tape!r} up to row {end}, and it holds {held[segment.tape]}"
            for sub in layer.sub_layers:
                if sub.kept is not None and sub.cache not in written:
                    yield f"{place} restores from {sub.cache!r} before it is written"
            for write in layer.writes:
                yield from (f"{place}: {problem}" for problem in _write(plan, step, layer, write, held[write.tape]))
                held[write.tape] = write.start + write.length
        written |= {sub.cache for layer in step.layers for sub in layer.sub_layers if sub.cache and sub.kept is None}


def _write(plan: Plan, step: Step, layer: Layer, write: TapeWrite, held: int) -> Iterator[str]:
    computed, past = computed_tokens(step, layer), sum(s.length for s in layer.past if s.tape == write.tape)
    if write.mode == "append":
        if write.start != held:
            yield f"appends to tape {write.tape!r} at row {write.start}, and it holds {held}"
        if write.length != computed:
            yield f"appends {write.length} rows to tape {write.tape!r} and computes {computed}"
    elif write.mode == "replace":
        if write.start != 0 or write.length > past + computed:
            yield f"replaces tape {write.tape!r} by {write.length} rows at {write.start}, of {past + computed} at 0"
        if past and not plan.tape(write.tape).alternating:
            yield f"replaces tape {write.tape!r} while it reads it: the tape must be alternating"
    else:
        yield f"writes tape {write.tape!r} in the mode {write.mode!r}, which is neither append nor replace"


def _unread(plan: Plan) -> Iterator[str]:
    """Nothing is written or declared that nobody reads: a step's outputs are bandwidth."""
    used = drop_unread(plan)
    for step, lean in zip(plan.steps, used.steps, strict=True):
        if step != lean:
            names = [write.tape for layer in step.layers for write in layer.writes]
            names += [sub.cache for layer in step.layers for sub in layer.sub_layers if sub.cache]
            left = [write.tape for layer in lean.layers for write in layer.writes]
            left += [sub.cache for layer in lean.layers for sub in layer.sub_layers if sub.cache]
            yield f"step {step.order} writes {min(set(names) - set(left))!r}, which nothing reads"
    yield from (f"tape {tape.id!r} is never read" for tape in plan.tapes if tape not in used.tapes)
    yield from (f"restore cache {cache.id!r} is never read" for cache in plan.caches if cache not in used.caches)
