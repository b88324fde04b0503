"""Looking inside step graphs: nothing differs in a good bundle, and in a wrong one the place is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import find_layer
import pytest
from find_layer import Place, find

from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.eager import Eager, Request
from nextscale.export.verify import TOLERANCES
from nextscale.runtime.bundle import open_bundle

ASKED = Request([1, 2], seed=3, guidance_scale=2.0, top_p=0.9)


@pytest.fixture
def eager(tiny_checkpoint: tuple[Path, Path], tiny_pruned_bundle: Path) -> Eager:
    return prepared(load_checkpoint(*tiny_checkpoint), open_bundle(tiny_pruned_bundle).manifest.plan, "fp32")


@pytest.fixture
def folder(tiny_pruned_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pruned_bundle, tmp_path / "graphs"))


def beyond(places: list[Place]) -> list[tuple[str, str]]:
    return [(place.graph, place.value) for place in places if place.error > TOLERANCES["fp32"]]


def test_a_good_bundle_differs_nowhere(folder: Path, eager: Eager) -> None:
    files = sorted(folder.iterdir())
    places = list(find(folder, eager, "fp32", ASKED))
    assert beyond(places) == []
    assert [place.value for place in places if place.graph == "step_03"] == [
        "blocks.0/x", "blocks.1/x", "logits.out", "state.code_sum.out",
    ]  # fmt: skip
    assert len({place.graph for place in places}) == 4
    assert sorted(folder.iterdir()) == files


def test_the_first_wrong_layer_is_named(folder: Path, eager: Eager) -> None:
    eager.var.get_submodule("blocks.1.ffn.fc2").get_parameter("bias").add_(1)
    found = beyond(list(find(folder, eager, "fp32", ASKED)))
    assert found[0] == ("step_00", "blocks.1/x")
    assert ("step_02", "blocks.0/x") not in found


def test_the_options_say_what_a_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        find_layer.main(["--recipe", "var-d16"])
    assert "--model, --vae" in capsys.readouterr().err
