"""Limits of backends that a plan runs into, found before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from nextscale.plan.editing import computed_tokens
from nextscale.plan.types import Layer, Plan, Step

TOPK = 3840  # the largest K of TensorRT's TopK


def limits(plan: Plan) -> list[str]:
    """What TensorRT cannot do of a plan as it stands, each as a sentence that says what to do; empty when it can."""
    return [sentence for step in plan.steps for sentence in (*_sampling(plan, step), *_kept(step), *_tapes(step))]


def _sampling(plan: Plan, step: Step) -> Iterator[str]:
    if step.sampling is None or "top_k" not in step.sampling.order:  # nothing is sorted; top_p comes with top_k
        return
    vocabulary, k = plan.model(step.weight_set).vocabulary, step.sampling.top_k
    if k > TOPK:
        yield f"step {step.order} samples from the top {k}, and TensorRT's TopK takes up to {TOPK}: lower top_k"
    elif not k and vocabulary > TOPK:
        yield (
            f"step {step.order} sorts all {vocabulary} codes for top-p, and TensorRT's TopK takes up to {TOPK}: "
            f"set top_k between 1 and {TOPK}"
        )


def _kept(step: Step) -> Iterator[str]:
    kept = {sub.kept for layer in step.layers for sub in layer.sub_layers if sub.kept is not None}
    for count in sorted(count for count in kept if count > TOPK):
        pruned = step.tokens_in - count
        selectable = "select the pruned ones instead" if pruned <= TOPK else "prune more"
        yield (
            f"step {step.order} keeps {count} of {step.tokens_in} tokens, and TensorRT's TopK takes up to {TOPK}: "
            f"{selectable} ({pruned})"
        )


def _tapes(step: Step) -> Iterator[str]:
    """Compressed tapes choose the rows that stay; each length once per step."""
    told = set()
    for layer in step.layers:
        for tape, length, available in _selections(step, layer):
            if length > TOPK and (length, available) not in told:
                told.add((length, available))
                evicted = available - length
                remedy = f"select the {evicted} evicted ones instead" if evicted <= TOPK else "lower the budget"
                yield (
                    f"step {step.order} keeps {length} rows of {available} on tape {tape!r}, and TensorRT's TopK takes "
                    f"up to {TOPK}: {remedy}, or keep them all"
                )


def _selections(step: Step, layer: Layer) -> Iterator[tuple[str, int, int]]:
    """Tape, rows kept and rows available of each replacing write that has to choose."""
    for write in layer.writes:
        past = sum(segment.length for segment in layer.past if segment.tape == write.tape)
        available = past + computed_tokens(step, layer)
        if write.mode == "replace" and write.length < available:
            yield write.tape, write.length, available
