"""The noise rule against committed vectors and an independent Philox written from its published definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import InputError
from nextscale.runtime.noise import fill, step_uniforms, uniforms

VECTORS = json.loads((Path(__file__).parent / "data" / "noise.json").read_text())["vectors"]
WORD = 2**64 - 1
words = st.integers(0, WORD)


def philox4x64_10(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Ten rounds in plain integers (Salmon et al. 2011)."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(right >> 64) ^ c[1] ^ k0, right & WORD, (left >> 64) ^ c[3] ^ k1, left & WORD]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c


def slow_numerators(seed: int, image: int, step: int, stream: int, count: int) -> list[int]:
    """The uniforms times 2**24, as whole numbers."""
    halves = [
        half
        for block in range((count + 7) // 8)
        for word in philox4x64_10((block, step, stream, 0), (seed, image))
        for half in (word & 0xFFFFFFFF, word >> 32)
    ]
    return [2 * (half >> 9) + 1 for half in halves[:count]]


def test_philox_is_the_published_one() -> None:
    """The known answers of Random123 for the zero and the all-ones counter and key."""
    assert philox4x64_10((0, 0, 0, 0), (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox4x64_10((WORD,) * 4, (WORD, WORD)) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['seed']}-{v['image']}-{v['step']}-{v['stream']}")
def test_committed_vectors(vector: dict[str, Any]) -> None:
    key = {name: word for name, word in vector.items() if name != "numerators"}
    expected = vector["numerators"]
    assert slow_numerators(**key, count=len(expected)) == expected
    assert (uniforms(**key, count=len(expected)).astype(np.float64) * 2**24).tolist() == expected


@given(words, words, words, words, st.integers(1, 40))
def test_every_key_and_counter(seed: int, image: int, step: int, stream: int, count: int) -> None:
    u = uniforms(seed, image, step, stream, count)
    assert u.dtype == np.float32
    assert (u.astype(np.float64) * 2**24).tolist() == slow_numerators(seed, image, step, stream, count)
    assert u.min() > 0
    assert u.max() < 1


def test_a_picture_does_not_depend_on_its_batch() -> None:
    batch = step_uniforms(5, range(4), step=3, stream=0, shape=(6, 11))
    alone = step_uniforms(5, [2], step=3, stream=0, shape=(6, 11))
    assert np.array_equal(batch[2], alone[0])
    assert not np.array_equal(batch[1], batch[2])


def test_fill_writes_the_given_memory_and_refuses_other_layouts() -> None:
    out = np.zeros((2, 3, 5), np.float32)
    assert fill(out, [(1, 0), (1, 1)], step=0, stream=0) is out
    assert np.array_equal(out[1].ravel(), uniforms(1, 1, 0, 0, 15))
    for wrong in (out.astype(np.float64), out[:, :, ::2], out[:1]):
        with pytest.raises(InputError, match="contiguous float32 array of 2 pictures"):
            fill(wrong, [(1, 0), (1, 1)], step=0, stream=0)


def test_words_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match="seed must be a whole number"):
        uniforms(-1, 0, 0, 0, 1)
    with pytest.raises(InputError, match="image must be a whole number"):
        uniforms(0, 2**64, 0, 0, 1)
