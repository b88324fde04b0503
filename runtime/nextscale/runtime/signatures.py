"""The signature of every graph of a bundle, derived from the plan alone.

The exporter names graph inputs and outputs by it and checks what it traced against it; the runtime allocates from
it. ``begin`` makes what does not change over the steps, ``step_NN`` is one pass of the chain, ``decode`` makes pixels.

State that a step both reads and writes (input map, code sum) has two buffers by turns: step ``k`` reads number
``k % 2`` and writes the other, so that no graph is given one address as input and as output.
"""

from __future__ import annotations

from collections.abc import Iterator

from nextscale.plan.conditioning import Condition, conditions, given, text_axis
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Layer, Model, Plan, Step
from nextscale.runtime.errors import ManifestError
from nextscale.runtime.manifest import IMAGES, PRECISIONS, ROWS, Graph, Manifest, Tensor

Shape = tuple[int | str, ...]


def derive_graphs(plan: Plan, precision: str = "fp32", text: bool = False) -> tuple[Graph, ...]:
    """``begin``, every step and ``decode`` with their complete inputs and outputs, in graph order.

    ``text`` puts a text encoder's graph in front, which makes features of token ids for ``begin``.

    Tapes, restore caches and a text's keys and values have the precision's dtype; everything else is float32, labels,
    lengths and tokens int32.
    Raises :class:`~nextscale.plan.errors.PlanError` for what a plan can say and graphs cannot do yet.
    """
    if precision not in PRECISIONS:
        raise PlanError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    _refuse_unsupported(plan)
    dtype = PRECISIONS[precision]
    steps = tuple(_step(plan, step, dtype) for step in plan.steps)
    return (*((_text(plan),) if text else ()), _begin(plan, dtype), *steps, _decode(plan))


def check(manifest: Manifest) -> None:
    """Refuse a manifest whose graphs are not what its plan says; names the first difference."""
    depth = _model(manifest.plan).depth
    if depth > max((len(g.outputs) for g in manifest.graphs), default=0):  # before a tensor is derived for each layer
        raise ManifestError(f"plan.models[0][1].depth: {depth} layers, and no graph has so many outputs")
    try:
        expected = derive_graphs(manifest.plan, manifest.precision, manifest.tokenizer is not None)
    except PlanError as error:
        raise ManifestError(f"plan: {error}") from error
    found = {g.name: g for g in manifest.graphs}
    for graph in expected:
        if graph.name not in found:
            raise ManifestError(f"graphs: {graph.name!r} is missing, which the plan needs")
        other = found.pop(graph.name)
        if other.step != graph.step:
            raise ManifestError(f"graphs.{graph.name}.step: the plan says {graph.step}, found {other.step}")
        for kind, wanted, there in (("inputs", graph.inputs, other.inputs), ("outputs", graph.outputs, other.outputs)):
            if wanted != there:
                raise ManifestError(f"graphs.{graph.name}.{kind}: {_difference(wanted, there)}")
    if found:
        raise ManifestError(f"graphs: {sorted(found)} are not in the plan")


def tape_buffer(plan: Plan, tape: str, part: str) -> str:
    """The buffer of a tape's keys (``part`` is ``k``) or values (``v``): ``tape.var.k.07``."""
    found = plan.tape(tape)
    return f"tape.{found.weight_set}.{part}.{found.layer:02d}"


def cache_buffer(plan: Plan, cache: str) -> str:
    """The buffer of a restore cache: ``cache.attn.07``."""
    found = plan.cache(cache)
    return f"cache.{found.sub_layer}.{found.layer:02d}"


def _begin(plan: Plan, dtype: str) -> Graph:
    model = _model(plan)
    inputs = tuple(_in(g.name, (IMAGES, *g.shape), dtype=g.dtype, source=g.name) for g in given(model))
    outputs = tuple(_out(f"cond.{c.name}", (ROWS, *c.shape), dtype=_dtype(c, dtype)) for c in conditions(model))
    return Graph("begin", "begin.onnx", None, inputs, outputs)


def _text(plan: Plan) -> Graph:
    text = _model(plan).text
    if text is None:
        raise PlanError(f"the plan {plan.name!r} is not conditioned on text, so it has no place for a text encoder")
    inputs = (
        _in("ids", (IMAGES, text_axis(text)), dtype="int32", source="ids"),
        _in("length", (IMAGES,), dtype="int32", source="length"),
    )
    features = _out("text", (IMAGES, text_axis(text), text.width), buffer="features")
    return Graph("text", "text.onnx", None, inputs, (features,))


def _decode(plan: Plan) -> Graph:
    height, width = plan.image_size
    code_sum = _in("state.code_sum", _code_sum(plan), buffer=f"state.code_sum.{len(plan.steps) % 2}")
    return Graph("decode", "decode.onnx", None, (code_sum,), (_out("image", (IMAGES, 3, height, width)),))


def _step(plan: Plan, step: Step, dtype: str) -> Graph:
    name = f"step_{step.order:02d}"
    inputs = (*_step_inputs(plan, step, dtype), *_past(plan, step, dtype))
    outputs = (*_step_outputs(plan, step), *_written(plan, step, dtype))
    return Graph(name, f"{name}.onnx", step.order, inputs, outputs)


def _step_inputs(plan: Plan, step: Step, dtype: str) -> Iterator[Tensor]:
    model, n, turn = _model(plan), step.tokens_out, step.order % 2
    if step.order:
        yield _in("state.map", (IMAGES, step.tokens_in, model.code_channels), buffer=f"state.map.{turn}")
        yield _in("state.code_sum", _code_sum(plan), buffer=f"state.code_sum.{turn}")
    for condition in conditions(model):
        if condition.read_by(step, first=step.order == 0):
            yield _in(f"cond.{condition.name}", (ROWS, *condition.shape), dtype=_dtype(condition, dtype))
    yield _in("noise", (IMAGES, n, model.head_outputs), source="uniforms.0")
    if step.sampling is not None and step.sampling.smooth:
        yield _in("noise.smooth", (IMAGES, n, model.head_outputs), source="uniforms.1")
    if step.diffusion and model.diffusion is not None:
        yield _in("noise.diffusion", (IMAGES, n, model.diffusion.steps, model.code_channels), source="uniforms.2")
    yield _in("guidance", (IMAGES, step.guidance_rows), source="guidance")
    yield _in("top_p", (IMAGES,), source="top_p")
    yield _in("temperature", (IMAGES,), source="temperature")
    yield _in("tokens", (IMAGES, n, *model.draws), dtype="int32", buffer="tokens.forced", source="tokens")


def _step_outputs(plan: Plan, step: Step) -> Iterator[Tensor]:
    model, n, turn = _model(plan), step.tokens_out, (step.order + 1) % 2
    yield _out("logits", (IMAGES, n, model.head_outputs))
    yield _out("tokens", (IMAGES, n, *model.draws), dtype="int32")
    yield _out("state.code_sum", _code_sum(plan), buffer=f"state.code_sum.{turn}")
    if step.next_input.grid is not None:
        h, w = step.next_input.grid
        yield _out("state.map", (IMAGES, h * w, model.code_channels), buffer=f"state.map.{turn}")


def _past(plan: Plan, step: Step, dtype: str) -> Iterator[Tensor]:
    """What the layers read of earlier steps: tape prefixes and restore caches."""
    for layer in step.layers:
        for segment in layer.past:
            for part in ("k", "v"):
                buffer = tape_buffer(plan, segment.tape, part)
                yield _in(buffer, _tape(plan, segment.tape, segment.length), dtype=dtype, offset=segment.start)
        for cache in _caches(layer, read=True):
            yield _in(cache_buffer(plan, cache), _cache(plan, cache), dtype=dtype)


def _written(plan: Plan, step: Step, dtype: str) -> Iterator[Tensor]:
    """What the layers leave for later steps: new tape rows and restore caches."""
    for layer in step.layers:
        for write in layer.writes:
            for part in ("k", "v"):
                buffer, shape = tape_buffer(plan, write.tape, part), _tape(plan, write.tape, write.length)
                yield _out(buffer, shape, dtype=dtype, offset=write.start, access=write.mode)
        for cache in _caches(layer, read=False):
            yield _out(cache_buffer(plan, cache), _cache(plan, cache), dtype=dtype)


def _caches(layer: Layer, read: bool) -> Iterator[str]:
    for sub in layer.sub_layers:
        if sub.cache is not None and (sub.kept is not None) == read:
            yield sub.cache


def _tape(plan: Plan, tape: str, length: int) -> Shape:
    return (length, ROWS, plan.tape(tape).heads, _model(plan).head_dim)


def _cache(plan: Plan, cache: str) -> Shape:
    h, w = plan.cache(cache).grid
    return (ROWS, h * w, _model(plan).width)


def _code_sum(plan: Plan) -> Shape:
    return (IMAGES, plan.tokenizer.code_channels, *plan.code_grid)


def _dtype(condition: Condition, precision: str) -> str:
    return precision if condition.dtype == "compute" else condition.dtype


def _model(plan: Plan) -> Model:
    return plan.models[0][1]


def _in(
    name: str,
    shape: Shape,
    dtype: str = "float32",
    buffer: str | None = None,
    offset: int = 0,
    source: str | None = None,
) -> Tensor:
    return Tensor(f"{name}.in", dtype, shape, buffer or name, offset, "read", source)


def _out(
    name: str,
    shape: Shape,
    dtype: str = "float32",
    buffer: str | None = None,
    offset: int = 0,
    access: str = "replace",
) -> Tensor:
    return Tensor(f"{name}.out", dtype, shape, buffer or name, offset, access)


def _difference(wanted: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> str:
    names, others = [t.name for t in wanted], [t.name for t in given]
    if names != others:
        missing, extra = [n for n in names if n not in others], [n for n in others if n not in names]
        return f"the plan's tensors differ: missing {missing}, unexpected {extra}, or another order"
    a, b = next((a, b) for a, b in zip(wanted, given, strict=True) if a != b)
    return f"the plan says {a}, found {b}"


def _refuse_unsupported(plan: Plan) -> None:
    """Graphs of this version chain one weight set, whole grids, residual code sums and appended tapes."""
    reasons = []
    if len(plan.models) != 1:
        reasons.append("more than one weight set")
    if plan.gathers or any(step.images != 1 for step in plan.steps):
        reasons.append("candidates that are selected between steps")
    if len({step.guidance_rows for step in plan.steps}) != 1:
        reasons.append("guidance rows that change between steps")
    if len(plan.guidance.scales) != 1:
        reasons.append("several guidance scales")
    if any(tape.alternating or tape.prefilled for tape in plan.tapes):
        reasons.append("tapes that are replaced or pre-filled")
    if len({(t.weight_set, t.layer) for t in plan.tapes}) != len(plan.tapes):
        reasons.append("several tapes for one layer")
    if [step.order for step in plan.steps] != list(range(len(plan.steps))):
        reasons.append("steps that are not numbered in their order")
    for step in plan.steps:
        h, w = step.grid
        if step.kind != "next_scale" or step.sampling is None:
            reasons.append(f"step {step.order} of kind {step.kind!r}")
        elif step.next_input.rule != "code_sum":
            reasons.append(f"step {step.order} with the next input {step.next_input.rule!r}")
        elif step.tokens_out != h * w or (step.order and step.tokens_in != h * w):
            reasons.append(f"step {step.order} with other tokens than its grid")
        elif any(len(layer.past) > 1 or any(s.gate for s in layer.past) for layer in step.layers):
            reasons.append(f"step {step.order} with gated or several tape segments in a layer")
    if reasons:
        raise PlanError(f"the plan {plan.name!r} cannot be exported by this version: it has {'; '.join(reasons)}")
