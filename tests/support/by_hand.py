"""A bundle run from its manifest's JSON with plain session calls and whole arrays: what the pipeline must equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from nextscale.runtime.noise import step_uniforms

Arrays = dict[str, np.ndarray[Any, Any]]


def encode_by_hand(bundle: Path, ids: Any, length: Any) -> np.ndarray[Any, Any]:
    """Features (prompts, tokens, width) of the graph ``text``."""
    session = ort.InferenceSession(str(bundle / "text.onnx"), providers=["CPUExecutionProvider"])
    features: np.ndarray[Any, Any] = session.run(["text.out"], {"ids.in": ids, "length.in": length})[0]
    return features


def run_by_hand(
    bundle: Path,
    asked: list[int] | Arrays,
    seed: int,
    guidance_scale: float,
    top_p: float,
    temperature: float,
    tokens: list[Any] | None = None,
) -> tuple[list[Arrays], np.ndarray[Any, Any]]:
    """Every step's outputs, and the pictures (images, 3, height, width). Tapes are joined by concatenation.

    ``asked`` are labels, or what ``begin`` is given by its sources: ``text``, ``text_length`` and so on.
    """
    given = asked if isinstance(asked, dict) else {"labels": np.array(asked, np.int32)}
    images = len(next(iter(given.values())))
    manifest = json.loads((bundle / "manifest.json").read_text())
    plan, buffers, steps = manifest["plan"], {}, []
    for graph in manifest["graphs"]:
        if graph["name"] == "text":
            continue
        step = plan["steps"][graph["step"]] if graph["step"] is not None else {}
        feeds = {}
        for t in graph["inputs"]:
            shape = [images if d == "images" else 2 * images if d == "rows" else d for d in t["shape"]]
            if t["source"] is None:
                held = buffers[t["buffer"]]
                feeds[t["name"]] = held[t["offset"] : t["offset"] + shape[0]] if t["name"].startswith("tape") else held
            elif t["source"].startswith("uniforms"):
                stream = int(t["source"][-1])
                feeds[t["name"]] = step_uniforms(seed, range(images), step["order"], stream, tuple(shape[1:]))
            else:
                feeds[t["name"]] = _given(t, shape, plan, step, given, guidance_scale, top_p, temperature, tokens)
        session = ort.InferenceSession(str(bundle / graph["file"]), providers=["CPUExecutionProvider"])
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
        for t in graph["outputs"]:
            old = buffers.get(t["buffer"])
            append = t["access"] == "append" and old is not None
            buffers[t["buffer"]] = np.concatenate([old, found[t["name"]]]) if append else found[t["name"]]
        if step:
            steps.append(found)
    return steps, buffers["image"]


def _given(
    t: Any,
    shape: list[int],
    plan: Any,
    step: Any,
    given: Arrays,
    scale: float,
    top_p: float,
    temp: float,
    tokens: Any,
) -> np.ndarray[Any, Any]:
    if t["source"] in given:
        return given[t["source"]]
    if t["source"] == "tokens":
        forced = None if tokens is None else tokens[step["order"]]
        return np.full(shape, -1, np.int32) if forced is None else np.asarray(forced, np.int32)
    if t["source"] == "guidance":
        weights = [c + s * scale for c, s in plan["guidance"]["weights"][step["scale"]]]
        return np.array([weights] * shape[0], np.float32)
    return np.full(shape, {"top_p": top_p, "temperature": temp}[t["source"]], np.float32)
