"""``nextscale debug`` on real bundles of a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.bundles import text_plan, write_bundle
from support.command import Command
from support.damage import with_other_weights

ODD = ("nan", "inf", "-0.001")


@pytest.fixture(scope="module")
def broken(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("broken") / "broken"
    return with_other_weights(tiny_bundle, out, "var/blocks.1.ffn.fc2.weight", lambda w: w * 1.01)


def test_agreement_is_one_line_and_status_0(nextscale: Command, tiny_bundle: Path) -> None:
    run = nextscale("debug", tiny_bundle, "step_02")
    assert run.status == 0, run.err
    assert "onnxruntime and onnxruntime-unoptimized agree on all" in run.out
    assert run.out.count("\n") == 1


def test_a_fault_is_named_with_status_4(nextscale: Command, tiny_bundle: Path, broken: Path) -> None:
    run = nextscale("debug", tiny_bundle, "step_02", "--against", broken)
    assert run.status == 4
    assert (
        "full on onnxruntime and broken on onnxruntime first differ at block 1, feed-forward, second layer" in run.err
    )
    assert "block 1, feed-forward, second layer" in run.out.splitlines()[4], "the first row is the place"
    assert "more that differ" in run.out


@pytest.mark.parametrize("graph", ["begin", "step_01", "step_03", "decode"])
@pytest.mark.parametrize("prefix", [False, True])
def test_texts_are_drawn_by_number(graph: str, prefix: bool, nextscale: Command, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "texts", text_plan(prefix))
    run = nextscale("debug", bundle, graph, "--labels", "3,5,4")
    assert run.status == 0, run.err
    assert "agree on all" in run.out


@pytest.mark.parametrize("labels", ["a cat", "0,-1", "0,none"])
def test_texts_have_no_other_names(labels: str, nextscale: Command, tmp_path: Path) -> None:
    run = nextscale("debug", write_bundle(tmp_path / "texts", text_plan()), "step_01", f"--labels={labels}")
    assert run.status == 2
    assert f"makes pictures of texts, which are drawn by number: 0,1; found '{labels}'" in run.sentence


def test_json_has_every_tensor(nextscale: Command, tiny_bundle: Path, broken: Path) -> None:
    run = nextscale("debug", tiny_bundle, "step_02", "--against", broken, "--json")
    found = json.loads(run.out)
    assert found["first"] in [tensor["tensor"] for tensor in found["tensors"]]
    first = next(tensor for tensor in found["tensors"] if tensor["beyond"])
    assert first["tensor"] == found["first"]
    assert first["words"] == "block 1, feed-forward, second layer"
    assert first["mean"] <= first["largest"]
    assert {tensor["tensor"] for tensor in found["outputs_alone"]} >= {"logits.out", "tokens.out"}


def test_eager_is_a_side(nextscale: Command, tiny_bundle: Path, tiny_checkpoint: tuple[Path, Path]) -> None:
    model, vae = tiny_checkpoint
    asked = ("debug", tiny_bundle, "step_03", "--backends", "onnxruntime,eager")
    run = nextscale(*asked, "--model", model, "--vae", vae, "--all")
    assert run.status == 0, run.err
    assert "block 0, attention, projection" in run.out
    assert "needs the checkpoint" in nextscale(*asked).sentence
    assert "needs both files" in nextscale(*asked, "--model", model).sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("step_00", "--backends", "onnxruntime"), "two backends are compared"),
        (("step_00", "--backends", "onnxruntime,magic"), "backend 'magic' is none of"),
        (("step_07",), "has no graph 'step_07'"),
        (("step_00", "--only", "nothing/"), "begins with 'nothing/'"),
        *((("step_00", "--tolerance", t), f"a number from 0 on, in units of max(1, std); found {t}") for t in ODD),
    ],
)
def test_what_cannot_be_asked_has_status_2(
    nextscale: Command, tiny_bundle: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    run = nextscale("debug", tiny_bundle, *arguments)
    assert run.status == 2
    assert sentence in run.sentence
