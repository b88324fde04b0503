"""Proving a finished bundle folder against the eager model, before anyone can open it.

Every graph gets the eager model's own inputs (forced tokens, the same noise, past and caches of the eager run), so an
error is the graph's alone and does not grow along the chain. Then it samples for itself from that noise: filters and
sampling are in the graph too, and forced tokens would hide them. The two pictures differ in every input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from nextscale.export.eager import Eager, Request, State
from nextscale.export.models.step import Draw
from nextscale.plan.errors import EnvironmentProblem, ParityError
from nextscale.runtime.backends.onnxruntime import errors_of
from nextscale.runtime.manifest import Graph, Verified
from nextscale.runtime.signatures import cache_buffer, derive_graphs, tape_buffer

# Times max(1, standard deviation of the logits). float32: what an independent implementation of the same formulas
# reaches, with room; a wrong GELU is 13 times larger. float16: its rounding, 2**-11, through the blocks, wide enough to
# hide a mistake, which is why such graphs are held against a float32 twin too.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-2}
# Share of tokens that may be drawn differently from the same noise, beside one: logits that tie to rounding.
UNEQUAL = {"fp32": 0.01, "fp16": 0.1}
# Two tokens whose scores tie to rounding may change places between two correct implementations: another seed decides.
SEEDS = (0, 1, 2)
HERE = "onnxruntime CPU"


@dataclass(frozen=True)
class Difference:
    """The worst tensor of one graph: its largest error, in units of max(1, std of the eager tensor).

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
        classes = eager.var.model.classes
        pictures = (
            Request([seed % classes], seed, guidance_scale=1.5, top_p=0.9, temperature=0.8),
            Request([classes], seed + len(SEEDS), guidance_scale=4.0, top_p=0.6, temperature=1.5),  # of no class
        )
        worst = _differences(folder, graphs, eager, pictures, progress)
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


def _differences(
    folder: Path,
    graphs: tuple[Graph, ...],
    eager: Eager,
    pictures: Sequence[Request],
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
                values["labels.in"] = torch.tensor([p.labels[0] for p in pictures], dtype=torch.int32)
                cond = eager.var.begin(values["labels.in"], len(plan.guidance.rows))
                expected = {"cond.sos.out": cond.sos, "cond.head.out": cond.head}
                expected |= {f"cond.adaln.{i:02d}.out": a for i, a in enumerate(cond.adaln)}
            elif graph.name == "decode":
                values["state.code_sum.in"] = expected["state.code_sum.out"]
                expected = {"image.out": eager.vae.decode(values["state.code_sum.in"])}
            else:
                step = plan.steps[graph.step or 0]
                draw = joined([eager.draw(step, picture) for picture in pictures])
                _remember(values, eager, state)
                values |= {"guidance.in": draw.guidance, "top_p.in": draw.top_p, "temperature.in": draw.temperature}
                values["noise.in"] = draw.noise
                if draw.smooth_noise is not None:
                    values["noise.smooth.in"] = draw.smooth_noise
                before = {name: tape[0].shape[0] for name, tape in state.tapes.items()}
                out = eager.run_step(step, cond, state, draw)
                values["tokens.in"] = out.tokens
                expected = {"logits.out": out.logits, "tokens.out": out.tokens, "state.code_sum.out": out.code_sum}
                if out.next_map is not None:
                    expected["state.map.out"] = out.next_map
                expected |= _written(eager, state, before)
            found.append(_compare(folder, graph, values, expected))
            values |= {name.replace(".out", ".in"): v for name, v in expected.items() if name.startswith("cond.")}
    return found


def joined(draws: Sequence[Draw]) -> Draw:
    """The draws of single pictures as those of a batch."""
    smooth = [draw.smooth_noise for draw in draws if draw.smooth_noise is not None]
    guidance, temperature, top_p, noise, tokens = (
        torch.cat(parts) for parts in zip(*(d[:5] for d in draws), strict=True)
    )
    return Draw(guidance, temperature, top_p, noise, tokens, torch.cat(smooth) if smooth else None)


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


def _compare(folder: Path, graph: Graph, values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Difference:
    """Runs one graph on the eager inputs; its worst output."""
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
        absolute = float(np.abs(array.astype(np.float32) - wanted).max()) if array.shape == wanted.shape else np.inf
        error = absolute / max(1.0, float(wanted.std()))
        if not error <= worst.error:
            worst = Difference(graph.name, name, error, absolute)
    if drawn is None:
        return worst
    return replace(worst, drawn=drawn.size, unequal=int((drawn != given["tokens.in"]).sum()))
