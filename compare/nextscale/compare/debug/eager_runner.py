"""Eager PyTorch as one of Polygraphy's runners: a graph's own inputs in, its outputs and what happens inside out.

A product with a weight is known by that weight, so the graph's tensor behind it has a counterpart; so have the
residual stream behind every block, tapes, caches and the code sum.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nextscale.compare.debug.runners import Task
from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import checkpoint_for
from nextscale.export.eager import Eager, State
from nextscale.export.models.step import Draw
from nextscale.plan.errors import InputError
from nextscale.plan.types import Plan
from nextscale.runtime.signatures import cache_buffer, tape_buffer


def make_eager_runner(task: Task) -> Any:
    """The runner; the checkpoint is read when it is activated."""
    BaseRunner: Any = import_module("polygraphy.backend.base").BaseRunner

    class EagerRunner(BaseRunner):  # type: ignore[misc]
        """One graph of a bundle, in eager PyTorch."""

        def activate_impl(self) -> None:
            manifest, (model, vae) = task.bundle.manifest, checkpoint_of(task)
            checkpoint = checkpoint_for(model, vae, manifest.plan)
            self.inside = Inside(prepared(checkpoint, manifest.plan, manifest.precision), products(task))

        def deactivate_impl(self) -> None:
            del self.inside

        def get_input_metadata_impl(self) -> Any:
            found = import_module("polygraphy.common").TensorMetadata()
            for tensor in task.graph.inputs:
                shape = [d if isinstance(d, int) else None for d in tensor.shape]
                found.add(tensor.name, dtype=np.dtype(tensor.dtype), shape=shape)
            return found

        def infer_impl(self, feed_dict: Mapping[str, Any]) -> Any:
            start = time.perf_counter()
            out = self.inside.run(task.graph.name, {k: torch.from_numpy(np.array(v)) for k, v in feed_dict.items()})
            self.inference_time = time.perf_counter() - start
            return OrderedDict((name, value.numpy()) for name, value in out.items())

    return EagerRunner(name=task.backend)


def checkpoint_of(task: Task) -> tuple[Path, Path]:
    """The files that eager reads."""
    if task.checkpoint is None:
        raise InputError("eager needs the checkpoint that the bundle was made of")
    return task.checkpoint


def products(task: Task) -> dict[str, str]:
    """Weights to the tensors that the graph makes of them, where that is one product."""
    import onnx

    model = onnx.load_model(task.path, load_external_data=False)
    return {node.input[1]: node.output[0] for node in model.graph.node if node.op_type == "Gemm"}


class Inside:
    """An eager model that tells what happens in it. ``products`` maps weights to tensors of the graph."""

    def __init__(self, eager: Eager, products: Mapping[str, str]) -> None:
        self.eager, self.products = eager, products
        self.weights = {id(p): f"var/{name}" for name, p in eager.var.named_parameters()}

    @torch.inference_mode()
    def run(self, graph: str, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor that has a name in the graph, as it is there."""
        eager, found = self.eager, dict[str, Tensor]()
        with Products(self.weights, self.products, found):
            if graph == "begin":
                cond = eager.begin({name.removesuffix(".in"): tensor for name, tensor in feed.items()})
                found |= {f"cond.{name}.out": made for name, made in cond.items()}
            elif graph == "decode":
                found["image.out"] = eager.pixels(feed["state.code_sum.in"])
            else:
                self._step(int(graph.removeprefix("step_")), feed, found)
        return found

    def _step(self, order: int, feed: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        eager, plan = self.eager, self.eager.plan
        step = plan.steps[order]
        cond = {n.removeprefix("cond.").removesuffix(".in"): t for n, t in feed.items() if n.startswith("cond.")}
        draw = Draw(
            guidance=feed["guidance.in"],
            temperature=feed["temperature.in"],
            top_p=feed["top_p.in"],
            noise=feed["noise.in"],
            tokens=feed["tokens.in"],
            smooth_noise=feed.get("noise.smooth.in"),
            diffusion_noise=feed.get("noise.diffusion.in"),
        )
        state = state_of(plan, feed)

        def seen(order: int, layer: int, x: Tensor) -> None:
            found[f"blocks.{layer}/x"] = x

        out = eager.run_step(step, cond, state, draw, seen)
        found |= {"logits.out": out.logits, "tokens.out": out.tokens, "state.code_sum.out": out.code_sum}
        if out.next_map is not None:
            found["state.map.out"] = out.next_map
        for layer in step.layers:
            for write in layer.writes:
                rows = (tape[write.start : write.start + write.length] for tape in state.tapes[write.tape])
                names = (f"{tape_buffer(plan, write.tape, part)}.out" for part in "kv")
                found |= dict(zip(names, rows, strict=True))
            for sub in layer.sub_layers:
                if sub.kept is None and sub.cache in state.caches:
                    found[f"{cache_buffer(plan, sub.cache)}.out"] = state.caches[sub.cache]


def state_of(plan: Plan, feed: Mapping[str, Tensor]) -> State:
    """What a step starts from, out of a graph's inputs."""
    tapes = {}
    for tape in plan.tapes:
        parts = [feed.get(f"{tape_buffer(plan, tape.id, part)}.in") for part in "kv"]
        if parts[0] is not None and parts[1] is not None:
            tapes[tape.id] = (parts[0], parts[1])
    caches = {c.id: feed[name] for c in plan.caches if (name := f"{cache_buffer(plan, c.id)}.in") in feed}
    return State(feed.get("state.map.in"), feed.get("state.code_sum.in"), tapes, caches)


class Products(TorchFunctionMode):
    """Keeps what every linear layer makes, under the name that the graph has for it, two-dimensional as there."""

    def __init__(self, weights: Mapping[int, str], products: Mapping[str, str], found: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights, self.products, self.found = weights, products, found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear:
            name = self.products.get(self.weights.get(id(args[1]), ""))
            if name is not None:
                self.found[name] = out.reshape(-1, out.shape[-1])
        return out
