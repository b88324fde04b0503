"""The example with PyTorch's tensors, on the CPU: the lines that run on a GPU."""

from __future__ import annotations

from pathlib import Path

import embed_torch
import numpy as np
import pytest
import torch

from nextscale.runtime import Pipeline


def test_it_runs(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed_torch.main([str(tiny_bundle)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "2 pictures in" in said.out
    assert "written to cpu at 0x" in said.out
    assert "half of class 0 and half of class 1" in said.out
    assert said.out.count("bits a token") == 4


def test_the_tensor_holds_the_pictures(tiny_bundle: Path) -> None:
    with Pipeline.open(tiny_bundle, threads=1, batch_sizes=(1, 2)) as pipeline:
        out = embed_torch.pictures(pipeline, "cpu")
        wanted = pipeline.generate([0, 1], seed=7).floats
    assert np.array_equal(out.permute(0, 2, 3, 1).numpy(), wanted)


def test_a_code_sum_is_decoded_where_it_lies(tiny_bundle: Path) -> None:
    with Pipeline.open(tiny_bundle, threads=1) as pipeline:
        out = embed_torch.empty_pictures(pipeline, 1, "cpu")
        pipeline.decode(embed_torch.last_code_sum(pipeline, 1), out=out)
        wanted = pipeline.generate(1, seed=7).floats
    assert np.array_equal(out.permute(0, 2, 3, 1).numpy(), wanted)


def test_entropies_are_those_of_the_logits(tiny_bundle: Path) -> None:
    with Pipeline.open(tiny_bundle, threads=1) as pipeline:
        found = embed_torch.certainty(pipeline)
        for bits, step in zip(found, pipeline.stream(1, seed=7), strict=True):
            entropy = torch.distributions.Categorical(logits=torch.from_numpy(step.logits())).entropy().mean()
            assert bits == pytest.approx(float(entropy) / np.log(2), rel=1e-5)


def test_a_gpu_that_is_not_there_is_one_sentence(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed_torch.main([str(tiny_bundle), "--backend", "tensorrt-rtx", "--device", "cpu"]) != 0
    assert capsys.readouterr().err.startswith("nextscale: the backend 'tensorrt-rtx' runs on 'cuda'")
