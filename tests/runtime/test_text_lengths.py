"""How long a text graphs compute with: no longer than a call's texts need, and pictures do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import text_plan, write_bundle

from nextscale.runtime import Pipeline, Result
from nextscale.runtime.backends import host
from nextscale.runtime.backends.base import Bound, Call, Memory
from nextscale.runtime.backends.onnxruntime import OnnxRuntime, Sessions
from nextscale.runtime.bundle import Bundle

PROMPTS = ["a red cat", "castle", "", "a green castle"]


def equal(first: Result, second: Result) -> None:
    np.testing.assert_array_equal(first.floats, second.floats)
    for a, b in zip(first.tokens, second.tokens, strict=True):
        np.testing.assert_array_equal(a, b)


class Lengths(OnnxRuntime):
    """Writes down how long the texts are that graphs are bound for."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.bound: list[tuple[str, int]] = []

    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> Sessions:
        loaded = super().open(bundle, batch_sizes)
        prepare = loaded.prepare

        def watched(memory: Memory, graph: str, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
            self.bound += [(graph, t.shape[1]) for t in inputs if t.name in ("ids.in", "text.in", "cond.text.k.01.in")]
            return prepare(memory, graph, inputs, outputs)

        loaded.prepare = watched  # type: ignore[method-assign]
        return loaded


def test_a_call_computes_with_no_more_tokens_than_its_longest_text_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes the very pictures that it makes with all of them."""
    bundle = write_bundle(tmp_path / "cross", text_plan())
    usual = Pipeline.open(bundle, threads=1)
    monkeypatch.setattr(host, "SHORT_TEXT", 2)
    backend = Lengths()
    with Pipeline.open(bundle, backend) as pipeline:
        assert backend.bound == []
        for subjects, negative, tokens in (
            (["castle", ""], None, 2),
            (PROMPTS, [None, "red", None, "a"], 4),
            (["castle"], "a red green cat castle", 6),
            (["castle"], None, 2),
        ):
            equal(
                pipeline.generate(subjects, negative=negative, seed=3),
                usual.generate(subjects, negative=negative, seed=3),
            )
            assert {length for graph, length in backend.bound if graph != "text"} <= {tokens}
            backend.bound.clear()
        steps = [step.preview() for step in pipeline.stream("castle", seed=4)]
    with usual:
        np.testing.assert_allclose(steps[-1] / 255, usual.generate("castle", seed=4).floats, atol=0.6 / 255)


@given(st.integers(2, 2000), st.data())
def test_a_text_is_padded_to_less_than_twice_its_length_or_to_64(longest: int, data: st.DataObject) -> None:
    lengths = host.doubled(longest)
    assert sorted(set(lengths)) == list(lengths)
    assert lengths[-1] == longest
    tokens = data.draw(st.integers(1, longest))
    fitting = min(n for n in lengths if n >= tokens)
    assert fitting < 2 * tokens or fitting == min(64, longest)
