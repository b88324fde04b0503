"""All graphs of a bundle from a plan: each distinct component is traced once and placed under every layer's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from nextscale.export.components import Begin, BlockStep, Decode, Embed, Finish, compute_in
from nextscale.export.compose import Composer
from nextscale.export.models.resize import resizes_of
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.export.names import bundle_names
from nextscale.export.trace import Argument, Component, Shape, trace, without_weights
from nextscale.plan.types import Layer, Plan, Step, SubLayer
from nextscale.runtime.manifest import IMAGES, ROWS, Graph
from nextscale.runtime.signatures import cache_buffer, derive_graphs, tape_buffer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class GraphBuilder:
    """Traces and composes. ``progress(done, total, what)`` is called before each graph."""

    def __init__(self, plan: Plan, precision: str) -> None:
        self.plan, self.dtype = plan, DTYPES[precision]
        self.signatures = {g.name: g for g in derive_graphs(plan, precision)}
        self.rows = len(plan.guidance.rows)
        self.traced: dict[object, Component] = {}
        with without_weights() as self.mode:
            self.var = VAR(plan.model(), plan.schedule).fold()
            self.vae = VQVAE(plan.tokenizer, len(plan.schedule), encoder=False)
            compute_in(self.var, self.vae, self.dtype)
            for resize in (self.var.resize, self.vae.quantize.resize):
                resize.prepare(resizes_of(plan))

    def build(self, progress: Callable[[int, int, str], None]) -> list[Composer]:
        """Every graph, in the order in which they run."""
        makers: list[tuple[str, Callable[[Graph], Composer]]] = [("begin", self.begin)]
        makers += [(f"step_{step.order:02d}", lambda g, s=step: self.step(g, s)) for step in self.plan.steps]  # type: ignore[misc]
        makers += [("decode", self.decode)]
        graphs = []
        for done, (name, make) in enumerate(makers):
            progress(done, len(makers), name)
            graphs.append(make(self.signatures[name]))
        return graphs

    def begin(self, signature: Graph) -> Composer:
        """Labels to conditioning."""
        outputs = [t.name for t in signature.outputs]
        labels = Argument("labels.in", (IMAGES,), torch.int32)
        component = trace(Begin(self.var, self.rows), self.mode, [labels], outputs, self.rows)
        return self._single(signature, component)

    def decode(self, signature: Graph) -> Composer:
        """Code sum to pixels."""
        argument = Argument("state.code_sum.in", signature.inputs[0].shape)
        component = trace(Decode(self.vae), self.mode, [argument], ["image.out"], self.rows)
        return self._single(signature, component)

    def step(self, signature: Graph, step: Step) -> Composer:
        """Embed, the step's layers, finish."""
        composer = Composer(signature)
        source = "cond.sos.in" if step.order == 0 else "state.map.in"
        n, width = step.tokens_in, self.plan.model().width
        component = trace(
            Embed(self.var, step),
            self.mode,
            [Argument("source", (ROWS, width) if step.order == 0 else (IMAGES, n, self.plan.model().code_channels))],
            ["x"],
            self.rows,
        )
        self._place(composer, component, "embed", {"source": source, "x": "x.embed"})
        x = "x.embed"
        for layer in step.layers:
            x = self._layer(composer, step, layer, x)
        self._finish(composer, step, x)
        return composer

    def _layer(self, composer: Composer, step: Step, layer: Layer, x: str) -> str:
        """Places one block; returns the name of the residual stream behind it."""
        at = f"blocks.{layer.index}"
        read, written = _caches(layer, read=True), _caches(layer, read=False)
        grids = {sub.name: self.plan.cache(sub.cache or "").grid for sub in read}
        parts = ("k", "v")
        past = [f"{tape_buffer(self.plan, s.tape, part)}.in" for s in layer.past for part in parts]
        names = {"x.in": x, "adaln.in": f"cond.adaln.{layer.index:02d}.in"}
        names |= dict(zip(("k.in", "v.in"), past, strict=False))
        names |= {f"cache.{sub.name}.in": f"{cache_buffer(self.plan, sub.cache or '')}.in" for sub in read}
        names |= {"x.out": f"{at}/x"}
        for write in layer.writes:
            names |= {f"{part}.out": f"{tape_buffer(self.plan, write.tape, part)}.out" for part in parts}
        names |= {f"cache.{sub.name}.out": f"{cache_buffer(self.plan, sub.cache or '')}.out" for sub in written}
        key, component = self._block(step, layer, grids)
        self._place(composer, component, at, names, layer.index, key)
        return f"{at}/x"

    def _block(self, step: Step, layer: Layer, grids: dict[str, tuple[int, int]]) -> tuple[str, Component]:
        """The component of a layer's shape, traced when first met; equal shapes differ in nothing but names."""
        shape = (
            step.grid,
            layer.past_rows,
            tuple(replace(sub, cache="cache" if sub.cache else None) for sub in layer.sub_layers),
            tuple(grids.items()),
            bool(layer.writes),
        )
        if shape not in self.traced:
            model, n = self.plan.model(), step.tokens_in
            tape: Shape = (layer.past_rows, ROWS, model.heads, model.head_dim)
            arguments = [Argument("x.in", (ROWS, n, model.width)), Argument("adaln.in", (ROWS, 6, model.width))]
            arguments += [Argument(f"{part}.in", tape, self.dtype) for part in ("k", "v") if layer.past]
            arguments += [
                Argument(f"cache.{name}.in", (ROWS, h * w, model.width), self.dtype) for name, (h, w) in grids.items()
            ]
            outputs = ["x.out", *(("k.out", "v.out") if layer.writes else ())]
            outputs += [f"cache.{sub.name}.out" for sub in _caches(layer, read=False)]
            module = BlockStep(self.var, self.var.blocks[layer.index], layer, step.grid, grids)  # type: ignore[arg-type]
            self.traced[shape] = trace(module, self.mode, arguments, outputs, self.rows)
        return f"block.{list(self.traced).index(shape)}", self.traced[shape]

    def _finish(self, composer: Composer, step: Step, x: str) -> None:
        """Places head, sampling and the way to the next input; its arguments have the signature's own names."""
        inputs = {t.name: t for t in composer.signature.inputs}
        order = ["cond.head.in", "guidance.in", "temperature.in", "top_p.in", "noise.in", "tokens.in"]
        order += [name for name in ("noise.smooth.in", "state.code_sum.in") if name in inputs]
        arguments = [Argument("x", (ROWS, step.tokens_in, self.plan.model().width))]
        arguments += [Argument(n, inputs[n].shape, torch.int32 if n == "tokens.in" else torch.float32) for n in order]
        outputs = ["logits.out", "tokens.out", "state.code_sum.out"]
        outputs += ["state.map.out"] if step.next_input.grid else []
        module = Finish(self.var, self.vae.quantize, step, self.plan)
        component = trace(module, self.mode, arguments, outputs, self.rows)
        self._place(composer, component, "finish", {"x": x} | {name: name for name in (*order, *outputs)})

    def _single(self, signature: Graph, component: Component) -> Composer:
        composer = Composer(signature)
        self._place(composer, component, signature.name, {n: n for n in (*component.inputs, *component.outputs)})
        return composer

    def _place(
        self,
        composer: Composer,
        component: Component,
        at: str,
        names: dict[str, str],
        layer: int | None = None,
        key: str | None = None,
    ) -> None:
        composer.place(component, key or at, at, names, bundle_names(component.weights, layer))


def _caches(layer: Layer, read: bool) -> list[SubLayer]:
    """The sub-layers that read (or write) a restore cache in this step, in the layer's order."""
    return [sub for sub in layer.sub_layers if sub.cache and (sub.kept is not None) == read]
