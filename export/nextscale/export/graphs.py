"""All graphs of a bundle from a plan: each distinct piece is traced once and placed under every layer's names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from nextscale.export.components import Begin, BlockStep, Decode, Embed, Finish, compute_in
from nextscale.export.compose import Composer
from nextscale.export.families import tokenizer_model, transformer
from nextscale.export.int8 import in_integers, integer_layers
from nextscale.export.models.resize import resizes_of
from nextscale.export.names import bundle_names
from nextscale.export.trace import Argument, Component, Piece, Symbols, trace, without_weights
from nextscale.plan.conditioning import Condition, block_conditions, conditions, given
from nextscale.plan.types import Layer, Plan, Step, SubLayer
from nextscale.runtime.manifest import ROWS, Graph
from nextscale.runtime.signatures import cache_buffer, derive_graphs, tape_buffer

# What an eager model is cast to; of int8 only products are not float32, and they become integers once all is traced.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
TORCH_DTYPES = {"float32": torch.float32, "int32": torch.int32}
ROTATION = ("rotation.cos", "rotation.sin")
PIECES_PER_TRACE = 8  # enough to share a trace's fixed cost, few enough for a progress bar that moves

Traced = dict[Hashable, Component]


@dataclass(frozen=True)
class Placement:
    """One piece in one graph: which, where, and what its inputs and outputs are called there."""

    key: Hashable
    at: str
    names: dict[str, str]
    layer: int | None = None


@dataclass
class Blueprint:
    """One graph before anything is traced."""

    signature: Graph
    placements: list[Placement] = field(default_factory=list)


class GraphBuilder:
    """Lists the pieces and placements of a plan's graphs, then traces and composes.

    ``traced`` may be shared by builders of one process: a method that changes two steps leaves the others' pieces as
    they are.
    """

    def __init__(self, plan: Plan, precision: str, traced: Traced | None = None) -> None:
        self.plan, self.dtype = plan, DTYPES[precision]
        self.rows, text = len(plan.guidance.rows), plan.model().text
        self.symbols = Symbols(self.rows, text.tokens if text else 0)
        self.traced: Traced = {} if traced is None else traced
        self.pieces: dict[Hashable, Piece] = {}
        # What every piece depends on beside its own shape.
        self.base = (plan.model(), plan.tokenizer, plan.schedule, self.rows, self.dtype)
        with without_weights() as self.mode:
            self.var = transformer(plan.model(), plan.schedule).fold()
            self.vae = tokenizer_model(plan.tokenizer, len(plan.schedule), encoder=False).fold()
            compute_in(self.var, self.vae, self.dtype)
            layers = integer_layers(self.var) if precision == "int8" else ()
            self.integers = {f"var/{path}.weight" for path in layers}
            for resize in (self.var.resize, self.vae.quantize.resize):
                resize.prepare(resizes_of(plan))
        signatures = {g.name: g for g in derive_graphs(plan, precision)}
        self.blueprints = [
            self._begin(signatures["begin"]),
            *(self._step(signatures[f"step_{step.order:02d}"], step) for step in plan.steps),
            self._decode(signatures["decode"]),
        ]

    def build(self, progress: Callable[[int, int, str], None]) -> list[Composer]:
        """Every graph, in the order in which they run. ``progress(done, total, what)`` counts pieces."""
        missing = [key for key in self.pieces if key not in self.traced]
        for done, keys in _batches(missing, PIECES_PER_TRACE):
            pieces = [self.pieces[key] for key in keys]
            progress(done, len(missing), f"{pieces[0].label} ... {pieces[-1].label}")
            self.traced.update(zip(keys, trace(pieces, self.mode, self.symbols), strict=True))
        composers = []
        for blueprint in self.blueprints:
            composer = Composer(blueprint.signature)
            for p in blueprint.placements:
                component = self.traced[p.key]
                block = None if p.layer is None else self.var.layer_path(p.layer)
                weights = bundle_names(component.weights, block)
                composer.place(component, self.pieces[p.key].label, p.at, p.names, weights)
            in_integers(composer, self.integers)
            composers.append(composer)
        return composers

    def _piece(self, shape: Hashable, make: Callable[[], Piece]) -> Hashable:
        """The key of a piece, which is made when it is first met."""
        key = (self.base, shape)
        if key not in self.pieces:
            self.pieces[key] = make()
        return key

    def _begin(self, signature: Graph) -> Blueprint:
        model = self.plan.model()
        names, made = tuple(g.name for g in given(model)), tuple(c.name for c in conditions(model))
        arguments = tuple(Argument(t.name, t.shape, TORCH_DTYPES[t.dtype]) for t in signature.inputs)
        piece = Piece(
            "begin", Begin(self.var, self.rows, names, made), arguments, tuple(t.name for t in signature.outputs)
        )
        return Blueprint(signature, [self._alone(piece)])

    def _decode(self, signature: Graph) -> Blueprint:
        code_sum = (Argument("state.code_sum.in", signature.inputs[0].shape),)
        return Blueprint(signature, [self._alone(Piece("decode", Decode(self.vae), code_sum, ("image.out",)))])

    def _alone(self, piece: Piece) -> Placement:
        key = self._piece(piece.label, lambda: piece)
        return Placement(key, piece.label, {n: n for n in (*(a.name for a in piece.arguments), *piece.outputs)})

    def _step(self, signature: Graph, step: Step) -> Blueprint:
        """Embed, the step's layers, finish."""
        model = self.plan.model()
        source = "state.map.in" if step.order else "cond.sos.in"
        read = [c for c in conditions(model) if c.reader == "embed"]
        rotates = model.rope != "none"

        def make() -> Piece:
            shape = {t.name: t.shape for t in signature.inputs}[source]
            arguments = (Argument("source", shape), *(self._condition(c.name, c) for c in read))
            module = Embed(self.var, step, tuple(c.name for c in read))
            return Piece(f"embed.{step.scale}", module, arguments, ("x", *(ROTATION if rotates else ())))

        names = {"source": source, "x": "embed/x"} | {f"{c.name}.in": f"cond.{c.name}.in" for c in read}
        names |= {part: f"embed/{part}" for part in ROTATION if rotates}
        placements = [Placement(self._piece(("embed", step.scale, step.order == 0), make), "embed", names)]
        x = "embed/x"
        for layer in step.layers:
            placements.append(self._layer(step, layer, x))
            x = f"blocks.{layer.index}/x"
        return Blueprint(signature, [*placements, self._finish(signature, step, x)])

    def _condition(self, name: str, condition: Condition) -> Argument:
        dtype = self.dtype if condition.dtype == "compute" else TORCH_DTYPES[condition.dtype]
        return Argument(f"{name}.in", (ROWS, *condition.shape), dtype)

    def _layer(self, step: Step, layer: Layer, x: str) -> Placement:
        """One block; layers of equal shape differ in nothing but names."""
        plan, at = self.plan, f"blocks.{layer.index}"
        read, written = _caches(layer, read=True), _caches(layer, read=False)
        names = {"x.in": x, "x.out": f"{at}/x"}
        names |= {f"{c.part}.in": f"cond.{c.name}.in" for c in block_conditions(plan.model(), layer.index)}
        if plan.model().rope != "none":
            names |= {f"{part}.in": f"embed/{part}" for part in ROTATION}
        for part in ("k", "v"):
            names |= {f"{part}.in": f"{tape_buffer(plan, s.tape, part)}.in" for s in layer.past}
            names |= {f"{part}.out": f"{tape_buffer(plan, w.tape, part)}.out" for w in layer.writes}
        names |= {f"cache.{sub.name}.in": f"{cache_buffer(plan, sub.cache or '')}.in" for sub in read}
        names |= {f"cache.{sub.name}.out": f"{cache_buffer(plan, sub.cache or '')}.out" for sub in written}
        grids = {sub.name: plan.cache(sub.cache or "").grid for sub in read}
        subs = tuple(replace(sub, cache="cache" if sub.cache else None) for sub in layer.sub_layers)
        shape = ("block", step.grid, step.tokens_in, layer.past_rows, subs, tuple(grids.items()), bool(layer.writes))
        return Placement(self._piece(shape, lambda: self._block(step, layer, grids)), at, names, layer.index)

    def _block(self, step: Step, layer: Layer, grids: dict[str, tuple[int, int]]) -> Piece:
        model = self.plan.model()
        tape = (layer.past_rows, ROWS, model.heads, model.head_dim)
        read, rotates = block_conditions(model, layer.index), model.rope != "none"
        arguments = [
            Argument("x.in", (ROWS, step.tokens_in, model.width)),
            *(self._condition(c.part, c) for c in read),
            *(self._rotation(step, part) for part in ROTATION if rotates),
            *(Argument(f"{part}.in", tape, self.dtype) for part in ("k", "v") if layer.past),
            *(Argument(f"cache.{n}.in", (ROWS, h * w, model.width), self.dtype) for n, (h, w) in grids.items()),
        ]
        outputs = ["x.out", *(("k.out", "v.out") if layer.writes else ())]
        outputs += [f"cache.{sub.name}.out" for sub in _caches(layer, read=False)]
        block = self.var.layer(layer.index)
        module = BlockStep(self.var, block, layer, step.grid, grids, tuple(c.part for c in read), rotates)
        return Piece(f"block.{len(self.pieces)}", module, tuple(arguments), tuple(outputs))

    def _rotation(self, step: Step, part: str) -> Argument:
        """Cosines or sines as the model makes them: for every row where they go on from its text."""
        with self.mode, torch.no_grad():
            rows = torch.zeros(1)
            made = self.var.rotation(step, {"position": rows})
        assert made is not None
        table = made[ROTATION.index(part)]
        shape = (ROWS, *table.shape[1:]) if table.ndim == 4 else tuple(table.shape)
        return Argument(f"{part}.in", shape)

    def _finish(self, signature: Graph, step: Step, x: str) -> Placement:
        """Head, sampling and the way to the next input, under the signature's own names."""
        inputs = {t.name: t for t in signature.inputs}
        order = ["cond.head.in", "guidance.in", "temperature.in", "top_p.in", "noise.in", "tokens.in"]
        order += [n for n in ("noise.smooth.in", "noise.diffusion.in", "state.code_sum.in") if n in inputs]
        outputs = (
            "logits.out",
            "tokens.out",
            "state.code_sum.out",
            *(("state.map.out",) if step.next_input.grid else ()),
        )
        residual = Argument("x", (ROWS, step.tokens_in, self.plan.model().width))

        def make() -> Piece:
            arguments = (Argument(n, inputs[n].shape, TORCH_DTYPES[inputs[n].dtype]) for n in order)
            module = Finish(self.var, self.vae, step, self.plan)
            return Piece(f"finish.{step.scale}", module, (residual, *arguments), outputs)

        shape = (step.scale, step.grid, step.tokens_in, step.sampling, step.next_input, step.diffusion, step.order == 0)
        key = self._piece(("finish", *shape), make)
        return Placement(key, "finish", {"x": x} | {name: name for name in (*order, *outputs)})


def _caches(layer: Layer, read: bool) -> list[SubLayer]:
    """The sub-layers that read (or write) a restore cache in this step, in the layer's order."""
    return [sub for sub in layer.sub_layers if sub.cache and (sub.kept is not None) == read]


def _batches(keys: list[Hashable], size: int) -> Iterator[tuple[int, list[Hashable]]]:
    """How many came before, and the next ``size`` keys."""
    rest = iter(keys)
    done = 0
    while batch := list(islice(rest, size)):
        yield done, batch
        done += len(batch)
