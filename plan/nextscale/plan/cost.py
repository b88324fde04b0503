"""What a plan costs: FLOPs and bytes of every graph, and memory by cause.

FLOPs count matrix products, two per multiplication; norms, softmaxes and sampling are bytes rather than work. Bytes
count each weight, each past row and each product's input and output once: what a graph cannot do without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nextscale.plan.aliasing import buffer_bytes, item_bytes, lifetimes, pack
from nextscale.plan.buffers import buffers
from nextscale.plan.conditioning import conditions, given, longest
from nextscale.plan.devices import Device
from nextscale.plan.editing import computed_tokens
from nextscale.plan.errors import InputError
from nextscale.plan.schedules import tokens
from nextscale.plan.sizes import (
    begin_parameters,
    decoder_parts,
    diffusion_parameters,
    embedding_parameters,
    head_parameters,
    integer_adaln,
    integer_parameters,
    model_parameters,
    quantizer_parameters,
    sub_layer_parameters,
    tokenizer_parameters,
)
from nextscale.plan.types import Grid, Layer, Model, Plan, Step, SubLayer


@dataclass(frozen=True)
class GraphCost:
    """One graph: FLOPs by kind of work, bytes by what moves. ``name`` is the graph's (``step_03``)."""

    name: str
    flops: Mapping[str, float]
    moved: Mapping[str, float]

    @property
    def total_flops(self) -> float:
        """All FLOPs."""
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        """All bytes that are read or written."""
        return sum(self.moved.values())


@dataclass(frozen=True)
class PlanCost:
    """Every graph of a plan for ``images`` pictures at a precision."""

    images: int
    precision: str
    begin: GraphCost
    steps: tuple[GraphCost, ...]
    decode: GraphCost

    @property
    def graphs(self) -> tuple[GraphCost, ...]:
        """All graphs, in the order in which they run."""
        return (self.begin, *self.steps, self.decode)

    @property
    def total_flops(self) -> float:
        """FLOPs of the whole chain."""
        return sum(graph.total_flops for graph in self.graphs)

    @property
    def total_bytes(self) -> float:
        """Bytes that the whole chain moves."""
        return sum(graph.total_bytes for graph in self.graphs)

    def seconds(self, device: Device) -> float:
        """Roofline time of the chain: the sum of its graphs' own."""
        return sum(device.seconds(graph.total_flops, graph.total_bytes, self.precision) for graph in self.graphs)


def plan_cost(plan: Plan, images: int = 1, precision: str = "fp16") -> PlanCost:
    """The cost of a plan for ``images`` pictures; raises :class:`InputError` for an unknown precision."""
    if images < 1:
        raise InputError(f"{images} pictures asked for: there must be 1 or more")
    steps = tuple(_step_cost(plan, step, images, precision) for step in plan.steps)
    return PlanCost(images, precision, _begin(plan, images, precision), steps, _decode(plan, images, precision))


def memory(plan: Plan, images: int = 1, precision: str = "fp16") -> dict[str, int]:
    """Bytes by cause for ``images`` pictures at once.

    ``scratch (estimate)`` is what the busiest graph needs beside its inputs and outputs. ``total`` counts the buffers
    packed by lifetime, so it may be less than the sum of the causes.
    """
    item = item_bytes("compute", precision)
    weights = sum(model_parameters(model, plan.schedule) for _, model in plan.models)
    weights += tokenizer_parameters(plan.tokenizer, plan.code_grid)
    used = lifetimes(plan)
    saved = (item - item_bytes("matrix", precision)) * sum(integer_parameters(model) for _, model in plan.models)
    causes = {"weights": weights * item - saved}
    for buffer in buffers(plan):
        if buffer.name in used:
            causes[buffer.cause] = causes.get(buffer.cause, 0) + buffer_bytes(buffer, images, precision)
    causes["scratch (estimate)"] = scratch(plan, images, precision)
    arena = pack(plan, images, precision).size
    return {**causes, "total": causes["weights"] + arena + causes["scratch (estimate)"]}


def scratch(plan: Plan, images: int, precision: str) -> int:
    """Bytes of intermediate results that the busiest graph holds at once: a block, the sampling, or the decoder."""
    item = item_bytes("compute", precision)
    busiest = 0
    for step in plan.steps:
        model, rows = plan.model(step.weight_set), step.rows * images
        stream = 2 * 4 * rows * step.tokens_in * model.width
        for layer in step.layers:
            m = computed_tokens(step, layer)
            joined = 2 * rows * (layer.past_rows + m) * model.width  # past and new keys and values, side by side
            attention = rows * m * 4 * model.width + joined
            hidden = 2 * rows * step.tokens_in * model.ffn_width
            busiest = max(busiest, stream + item * max(attention, hidden))
        sampling = 4 * 4 * images * step.images * step.tokens_out * model.head_outputs
        diffusion = 4 * 6 * rows * step.tokens_out * model.diffusion.width if step.diffusion and model.diffusion else 0
        busiest = max(busiest, stream + max(sampling, diffusion))
    widest = max(part.items for part in decoder_parts(plan.tokenizer, plan.code_grid))
    return max(busiest, images * widest * (2 * item + 4))  # a layer's input, its output and the norm in float32


def _step_cost(plan: Plan, step: Step, images: int, precision: str) -> GraphCost:
    model, item, rows = plan.model(step.weight_set), item_bytes("compute", precision), step.rows * images
    pictures = step.images * images
    flops = dict.fromkeys(("linear", "attention", "restore", "head", "diffusion", "codes"), 0.0)
    moved = dict.fromkeys(("weights", "tapes", "restore caches", "activations", "state and sampling"), 0.0)
    for layer in step.layers:
        for sub in layer.sub_layers:
            _add_sub_layer(plan, step, layer, sub, rows, item, flops, moved)
            moved["weights"] += item_bytes("matrix", precision) * sub_layer_parameters(model, sub.name)
        for write in layer.writes:
            moved["tapes"] += 2 * item * rows * write.length * _tape_width(plan, write.tape, model)
    if step.order:  # the first step's tokens come from begin
        flops["linear"] += 2 * pictures * step.tokens_in * model.code_channels * model.width
    moved["weights"] += item * embedding_parameters(model, (step.grid,))
    if step.sampling is not None:
        outputs = model.head_outputs
        flops["head"] += 2 * rows * step.tokens_out * model.width * outputs
        moved["weights"] += item * (head_parameters(model) + quantizer_parameters(plan.tokenizer))
        moved["activations"] += 4 * rows * step.tokens_out * (model.width + outputs)
        moved["state and sampling"] += 4 * pictures * step.tokens_out * outputs * 4  # rows, logits, noise, draw
    if step.diffusion:
        flops["diffusion"] += rows * step.tokens_out * _diffusion_flops(model)
        moved["weights"] += item * diffusion_parameters(model)
    flops["codes"] += pictures * _next_input_flops(plan, step)
    sums = 2 * plan.tokenizer.code_channels * tokens(plan.code_grid)
    moved["state and sampling"] += 4 * pictures * (sums + model.code_channels * step.tokens_in)
    return GraphCost(f"step_{step.order:02d}", flops, moved)


def _diffusion_flops(model: Model) -> int:
    """All denoising steps of one token: what it is conditioned by is embedded once."""
    if model.diffusion is None:
        return 0
    w, z = model.diffusion.width, model.code_channels
    once = 2 * model.width * w
    return once + model.diffusion.steps * (2 * w * z + model.diffusion.depth * 10 * w * w + 4 * w * w + 4 * w * z)


def _add_sub_layer(
    plan: Plan,
    step: Step,
    layer: Layer,
    sub: SubLayer,
    rows: int,
    item: int,
    flops: dict[str, float],
    moved: dict[str, float],
) -> None:
    """One sub-layer of one block, over all ``rows`` batch rows."""
    model, n = plan.model(step.weight_set), step.tokens_in
    m, c, f = n if sub.kept is None else sub.kept, model.width, model.ffn_width
    moved["activations"] += 2 * 4 * rows * n * c  # the residual stream, read and written
    if sub.name == "ffn":
        hidden = 2 * f if model.gated_ffn else f
        flops["linear"] += 2 * rows * m * c * (hidden + f)
        moved["activations"] += item * rows * m * (2 * c + hidden + f)
    elif sub.name == "ca":
        text = model.text.tokens if model.text else 0
        flops["linear"] += 4 * rows * m * c * c
        flops["attention"] += 4 * rows * m * text * c
        moved["activations"] += item * rows * (m * 6 * c + 2 * text * c)
    else:
        past = sum(segment.length * _tape_width(plan, segment.tape, model) for segment in layer.past)
        flops["linear"] += 8 * rows * m * c * c
        flops["attention"] += 4 * rows * m * (past + m * c)
        moved["activations"] += item * rows * m * 10 * c
        moved["tapes"] += 2 * item * rows * past
    if sub.cache is not None:
        grid = plan.cache(sub.cache).grid
        moved["restore caches"] += item * rows * tokens(grid) * c
        if sub.kept is not None:
            flops["restore"] += rows * c * resize_flops(grid, step.grid)


def resize_flops(source: Grid, target: Grid) -> int:
    """FLOPs of resizing one channel by a matrix per axis, rows first."""
    (h, w), (to_h, to_w) = source, target
    return (2 * to_h * h * w if h != to_h else 0) + (2 * to_h * w * to_w if w != to_w else 0)


def _next_input_flops(plan: Plan, step: Step) -> int:
    """Codes to the code sum, through a residual convolution where there is one, and on to the next map; one picture."""
    channels, final = plan.tokenizer.code_channels, plan.code_grid
    if step.next_input.rule == "none":
        return 0
    flops = channels * resize_flops(plan.latents(step.grid), final)
    if step.next_input.phi is not None:
        flops += 2 * 9 * channels * channels * tokens(final)
    if step.next_input.grid is not None:
        flops += channels * resize_flops(final, plan.latents(step.next_input.grid))
    return flops


def _tape_width(plan: Plan, tape: str, model: Model) -> int:
    return plan.tape(tape).heads * model.head_dim


def _begin(plan: Plan, images: int, precision: str) -> GraphCost:
    item, flops = item_bytes("compute", precision), 0.0
    moved = dict.fromkeys(("weights", "activations"), 0.0)
    for name, model in plan.models:
        rows = images * max((step.rows for step in plan.steps if step.weight_set == name), default=0)
        adaln = 0 if not model.adaln else 6 if model.shared_adaln else 6 * model.depth
        flops += rows * (2 * model.width * model.width * (adaln + 2) + _text_flops(model))
        labels = model.classes * model.width  # of the class table only the rows asked for are read
        saved = (item - item_bytes("matrix", precision)) * integer_adaln(model)
        moved["weights"] += item * (begin_parameters(model) - labels) - saved
        moved["activations"] += 4 * images * sum(math.prod(longest(g.shape, model)) for g in given(model))
        for made in conditions(model):
            moved["activations"] += rows * math.prod(longest(made.shape, model)) * item_bytes(made.dtype, precision)
    return GraphCost("begin", {"linear": flops}, moved)


def _text_flops(model: Model) -> int:
    """One row's text: embedded as the first tokens, or pooled and made keys and values of every block, once."""
    if model.text is None:
        return 0
    n, c, width = model.text.tokens, model.width, model.text.width
    if model.text.use == "prefix":
        return 2 * n * width * c
    pooling = 2 * n * width * 2 * c + 4 * n * c + 2 * c * c
    context = 2 * n * (width * c + c * c)
    return pooling + context + model.depth * 2 * n * c * 2 * c


def _decode(plan: Plan, images: int, precision: str) -> GraphCost:
    item, parts = item_bytes("compute", precision), list(decoder_parts(plan.tokenizer, plan.code_grid))
    moved = {
        "weights": float(item * sum(part.parameters for part in parts)),
        "activations": float(2 * item * images * sum(part.items for part in parts)),
    }
    return GraphCost("decode", {"decoder": float(images * sum(part.flops for part in parts))}, moved)
