"""Proving a finished bundle folder against the eager model, before anyone can open it.

Every graph gets the eager model's own inputs (forced tokens, the same noise, past and caches of the eager run), so an
error is the graph's alone and does not grow along the chain. Then it samples for itself from that noise: filters and
sampling are in the graph too, and forced tokens would hide them. The two pictures differ in every input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from nextscale.export.compose import ONNX_TYPES
from nextscale.export.eager import Eager, Request, State
from nextscale.export.models.step import Draw
from nextscale.export.safetensors_file import header_of
from nextscale.plan.errors import EnvironmentProblem, ParityError
from nextscale.plan.types import Model
from nextscale.runtime.backends.onnxruntime import errors_of
from nextscale.runtime.manifest import WEIGHTS_FILE, Graph, Verified
from nextscale.runtime.signatures import cache_buffer, derive_graphs, tape_buffer

# Times max(1, standard deviation of the logits). float32: what an independent implementation of the same formulas
# reaches, with room; a wrong GELU is 13 times larger. float16: its rounding, 2**-11, through the blocks, wide enough to
# hide a mistake, which is why such graphs are held against a float32 twin too.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-2, "int8": 0.1}
# Activations that are rounded to integers: a sum in another order puts some on the other side, and all behind them with
# it, so single numbers of correct implementations are far apart. Their root mean square is judged, not the largest.
ROUNDING_SPREADS = ("int8",)
# Share of tokens that may be drawn differently from the same noise, beside one: logits that tie to rounding.
UNEQUAL = {"fp32": 0.01, "fp16": 0.1, "int8": 0.1}
# Two tokens whose scores tie to rounding may change places between two correct implementations: another seed decides.
SEEDS = (0, 1, 2)
HERE = "onnxruntime CPU"


@dataclass(frozen=True)
class Difference:
    """The worst tensor of one graph: its error, in units of max(1, std of the eager tensor).

    ``error`` is the largest of the tensor's, of int8 their root mean square; ``absolute`` is the largest.

    ``unequal`` of ``drawn`` tokens differ where the graph samples for itself, from the eager model's noise.
    """

    graph: str
    tensor: str
    error: float
    absolute: float
    drawn: int = 0
    unequal: int = 0

    def fits(self, precision: str) -> bool:
        """Whether numbers and draws are within what rounding explains."""
        return self.error <= TOLERANCES[precision] and self.unequal <= 1 + UNEQUAL[precision] * self.drawn


def verify(
    folder: Path, eager: Eager, precision: str, progress: Callable[[int, int, str], None], how: str = HERE
) -> tuple[Verified, ...]:
    """Checks every graph of ``folder``; raises :class:`ParityError` naming the graph and tensor that differ."""
    graphs = derive_graphs(eager.plan, precision)
    for graph in graphs:
        onnx.checker.check_model(folder / graph.file)
    worst: list[Difference] = []
    for seed in SEEDS:
        pictures = examples(eager.plan.model(), seed)
        worst = _differences(folder, graphs, eager, pictures, precision, progress)
        if all(d.fits(precision) for d in worst):
            how = f"{how}, eager inputs, seed {seed}, forced tokens, then draws of its own"
            return tuple(Verified(d.graph, how, d.error, TOLERANCES[precision]) for d in worst)
    bad = max((d for d in worst if not d.fits(precision)), key=lambda d: (d.error, d.unequal))
    found = f"{bad.tensor} differs from the eager model by {bad.absolute:.3g} ({bad.error:.3g} of its spread, "
    found += f"{TOLERANCES[precision]:.0e} is allowed)"
    if bad.error <= TOLERANCES[precision]:
        found = f"{bad.unequal} of {bad.drawn} tokens are drawn differently from the eager model's own noise"
    raise ParityError(
        f"{bad.graph}: {found} with every one of {len(SEEDS)} seeds: the bundle is not published; "
        "`docs/parity.md` says how to find the layer"
    )


def check_signatures(folder: Path, graphs: tuple[Graph, ...]) -> tuple[Verified, ...]:
    """Without running anything: every graph takes and gives what its signature says, and reads weights that are there.

    Raises :class:`ParityError` naming the first thing that differs.
    """
    length, header = header_of(folder / WEIGHTS_FILE)
    for graph in graphs:
        onnx.checker.check_model(folder / graph.file)
        model = onnx.load_model(folder / graph.file, load_external_data=False).graph
        sides = ((model.input, graph.inputs), (model.output, graph.outputs))
        for found, wanted in ((v, t) for values, tensors in sides for v, t in zip_longest(values, tensors)):
            if found is None or wanted is None or _face(found) != (wanted.name, ONNX_TYPES[wanted.dtype], wanted.shape):
                raise ParityError(f"{graph.name}: its signature says {wanted}, and the graph has {found}")
        for tensor in model.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            entry = header.get(tensor.name, {"shape": None, "data_offsets": (0, 0)})
            at = {pair.key: pair.value for pair in tensor.external_data}
            start, end = entry["data_offsets"]
            if list(tensor.dims) != entry["shape"] or (at["offset"], at["length"]) != (
                str(8 + length + start),
                str(end - start),
            ):
                raise ParityError(f"{graph.name} reads {tensor.name}, which does not lie there in {WEIGHTS_FILE}")
    return tuple(Verified(graph.name, "signature and weights; not run", None, None) for graph in graphs)


def _face(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int | str, ...]]:
    """Name, type and shape of a graph's input or output."""
    kind = value.type.tensor_type
    return value.name, kind.elem_type, tuple(d.dim_param or d.dim_value for d in kind.shape.dim)


def _differences(
    folder: Path,
    graphs: tuple[Graph, ...],
    eager: Eager,
    pictures: Sequence[Request],
    precision: str,
    progress: Callable[[int, int, str], None],
) -> list[Difference]:
    """Runs graph after graph beside the eager model; one session is open at a time."""
    values: dict[str, Tensor] = {}  # by signature name, of the eager run
    found = []
    plan, state = eager.plan, State()
    with torch.inference_mode():
        for done, graph in enumerate(graphs):
            progress(done, len(graphs), graph.name)
            if graph.name == "begin":
                asked = [eager.given(picture) for picture in pictures]
                given = {name: torch.cat([one[name] for one in asked]) for name in asked[0]}
                values |= {f"{name}.in": tensor for name, tensor in given.items()}
                cond = eager.begin(given)
                expected = {f"cond.{name}.out": made for name, made in cond.items()}
            elif graph.name == "decode":
                values["state.code_sum.in"] = expected["state.code_sum.out"]
                expected = {"image.out": eager.vae.decode(values["state.code_sum.in"])}
            else:
                step = plan.steps[graph.step or 0]
                draw = joined([eager.draw(step, picture) for picture in pictures])
                _remember(values, eager, state)
                values |= {"guidance.in": draw.guidance, "top_p.in": draw.top_p, "temperature.in": draw.temperature}
                values["noise.in"] = draw.noise
                for name, noise in (("smooth", draw.smooth_noise), ("diffusion", draw.diffusion_noise)):
                    values |= {} if noise is None else {f"noise.{name}.in": noise}
                before = {name: tape[0].shape[0] for name, tape in state.tapes.items()}
                out = eager.run_step(step, cond, state, draw)
                values["tokens.in"] = out.tokens
                expected = {"logits.out": out.logits, "tokens.out": out.tokens, "state.code_sum.out": out.code_sum}
                if out.next_map is not None:
                    expected["state.map.out"] = out.next_map
                expected |= _written(eager, state, before)
            found.append(_compare(folder, graph, values, expected, precision in ROUNDING_SPREADS))
            values |= {name.replace(".out", ".in"): v for name, v in expected.items() if name.startswith("cond.")}
    return found


def examples(model: Model, seed: int) -> tuple[Request, Request]:
    """Two pictures that differ in every input: one of a class, the other of none; or of texts of other lengths, one of
    them against a third where the model takes that."""
    first: dict[str, Any] = {"seed": seed, "guidance_scale": 1.5, "top_p": 0.9, "temperature": 0.8}
    second: dict[str, Any] = {"seed": seed + len(SEEDS), "guidance_scale": 4.0, "top_p": 0.6, "temperature": 1.5}
    if model.text is None:
        return Request([seed % model.classes], **first), Request([model.classes], **second)
    tokens, width = model.text.tokens, model.text.width
    rng = np.random.default_rng(seed)
    lengths = (max(1, tokens // 3), tokens, max(1, tokens // 2))
    texts = [(rng.standard_normal((tokens, width), np.float32), n) for n in lengths]
    negative = texts[2] if model.text.use == "cross" else None
    return Request([texts[0]], **first), Request([texts[1]], **second, negative=negative)


def joined(draws: Sequence[Draw]) -> Draw:
    """The draws of single pictures as those of a batch."""
    fields = ([getattr(draw, name) for draw in draws] for name in Draw._fields)
    return Draw._make(None if parts[0] is None else torch.cat(parts) for parts in fields)


def _remember(values: dict[str, Tensor], eager: Eager, state: State) -> None:
    """What the step is about to read, under the graph's names."""
    if state.map is not None and state.code_sum is not None:
        values |= {"state.map.in": state.map, "state.code_sum.in": state.code_sum}
    for name, rows in state.tapes.items():
        values |= {f"{tape_buffer(eager.plan, name, part)}.in": t for part, t in zip("kv", rows, strict=True)}
    values |= {f"{cache_buffer(eager.plan, name)}.in": cache for name, cache in state.caches.items()}


def _written(eager: Eager, state: State, before: Mapping[str, int]) -> dict[str, Tensor]:
    """What the step has added to the tapes, and the restore caches as they are now."""
    written = {
        f"{tape_buffer(eager.plan, name, part)}.out": t[before.get(name, 0) :]
        for name, rows in state.tapes.items()
        for part, t in zip("kv", rows, strict=True)
    }
    return written | {f"{cache_buffer(eager.plan, name)}.out": cache for name, cache in state.caches.items()}


def _compare(
    folder: Path, graph: Graph, values: Mapping[str, Tensor], expected: Mapping[str, Tensor], mean: bool
) -> Difference:
    """Runs one graph on the eager inputs; its worst output, by the root mean square of errors or by the largest."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Packing the weights for speed would hold a second copy of them, for a session that runs once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    names = [t.name for t in graph.outputs]
    given = {t.name: values[t.name].numpy() for t in graph.inputs}
    forced = "tokens.in" in given
    try:
        session = onnxruntime.InferenceSession(folder / graph.file, options, providers=["CPUExecutionProvider"])
        got = session.run(names, given)
        free = given | {"tokens.in": np.full_like(given["tokens.in"], -1)} if forced else {}
        drawn = session.run(["tokens.out"], free)[0] if forced else None
    except errors_of(onnxruntime) as refusal:
        raise EnvironmentProblem(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {graph.file}, so it cannot be verified "
            f"({str(refusal).strip().partition(chr(10))[0][:300]}): the bundle is not published"
        ) from refusal
    worst = Difference(graph.name, "", 0.0, 0.0)
    for name, array in zip(names, got, strict=True):
        wanted = expected[name].float().numpy()
        errors = np.abs(array.astype(np.float32) - wanted) if array.shape == wanted.shape else np.array([np.inf])
        absolute = float(errors.max())
        error = (float(np.sqrt(np.square(errors).mean())) if mean else absolute) / max(1.0, float(wanted.std()))
        if not error <= worst.error:
            worst = Difference(graph.name, name, error, absolute)
    if drawn is None:
        return worst
    return replace(worst, drawn=drawn.size, unequal=int((drawn != given["tokens.in"]).sum()))
