"""The comparison on real bundles of a tiny checkpoint; one run serves most of these tests."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.damage import with_other_weights

from nextscale.compare.columns import lacking
from nextscale.compare.comparison import Comparison, compare
from nextscale.compare.options import Options
from nextscale.compare.report import picture_name
from nextscale.plan.errors import EnvironmentProblem, InputError, ParityError

QUICK = Options(pictures=4, threads=1, memory=False)
SIDES = ["eager full", "eager as pruned", "full", "pruned"]


@pytest.fixture(scope="module")
def found(
    tiny_checkpoint: tuple[Path, Path],
    tiny_bundle: Path,
    tiny_pruned_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Comparison:
    out = tmp_path_factory.mktemp("compare") / "report"
    options = Options(pictures=4, batch=2, threads=1)
    return compare([tiny_bundle, tiny_pruned_bundle], *tiny_checkpoint, out, options)


@pytest.fixture(scope="module")
def data(found: Comparison) -> Any:
    return json.loads((found.report.parent / "report.json").read_text())


def test_every_side_ran_as_often(found: Comparison) -> None:
    measured = found.measured
    assert list(measured.records) == SIDES
    for record in measured.records.values():
        assert len(record.totals) == 2
        assert len(record.pictures) == 4
        assert record.pictures[0].shape == (8, 8, 3)
        assert list(record.seconds) == ["begin", *(f"step_{i:02d}" for i in range(4)), "decode"]
        assert sum(seconds[0] for seconds in record.seconds.values()) <= record.totals[0]


def test_parity_holds_between_what_is_the_same(found: Comparison) -> None:
    assert found.held
    found.check()
    assert [v.bundle for v in found.verdicts] == ["full", "pruned"]
    for verdict in found.verdicts:
        assert verdict.within == 4
        assert 0 < verdict.error < 1e-5


def test_equal_logits_sample_equal_tokens(found: Comparison) -> None:
    for pictures in found.measured.parities.values():
        for picture in pictures:
            assert all(step.equal_forced == 1.0 and step.equal_free == 1.0 for step in picture.steps)
            assert all(step.spread > 0.1 for step in picture.steps)  # else equal errors would mean little


def test_bundles_make_eagers_pictures(found: Comparison) -> None:
    records = found.measured.records
    for eager, bundle in (("eager full", "full"), ("eager as pruned", "pruned")):
        for a, b in zip(records[eager].pictures, records[bundle].pictures, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_pruning_is_seen_in_the_pictures_alone(found: Comparison) -> None:
    records = found.measured.records
    assert all(likeness.psnr is None for likeness in records["eager full"].likeness)
    assert all(likeness.psnr is None or likeness.psnr > 90 for likeness in records["full"].likeness)
    assert all(likeness.psnr is not None and likeness.psnr < 60 for likeness in records["pruned"].likeness)


def test_memory_is_each_sides_own(found: Comparison) -> None:
    memory = {name: record.memory for name, record in found.measured.records.items()}
    if any(use is None for use in memory.values()):
        pytest.skip("this system does not tell")
    for use in memory.values():
        assert use is not None
        assert use.before < use.peak
    eager, bundle = memory["eager full"], memory["full"]
    assert eager is not None
    assert bundle is not None
    assert bundle.peak < eager.before  # no PyTorch in a bundle's process


def test_the_page_needs_no_other_file(found: Comparison) -> None:
    page = found.report.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 4 * len(SIDES)
    with Image.open(io.BytesIO(base64.b64decode(images[0]))) as image:
        assert np.array_equal(np.asarray(image), found.measured.full.pictures[0])
    assert page.count("parity held") == 2
    assert page.count("<svg") == 1 + 2 + 2  # times, errors, plans


def test_the_numbers_are_written_down(found: Comparison, data: Any) -> None:
    assert data["held"] is True
    assert data["threads"] == 1
    assert data["machine"]["versions"]["torch"]
    assert [side["name"] for side in data["sides"]] == SIDES
    assert data["sides"][3]["reference"] == "eager as pruned"
    assert data["sides"][3]["methods"]
    totals = data["sides"][2]["runs"]["all"]
    assert totals == found.measured.records["full"].totals
    assert data["sides"][2]["seconds"]["step_03"]["runs"] == 2
    full, pruned = (data["summary"][i] for i in (2, 3))
    assert pruned["flops"] < full["flops"]
    assert pruned["computed"] < full["computed"] == 1.0
    assert len(data["parity"]["pruned"]["pictures"]) == 4
    assert [step["tokens"] for step in data["parity"]["full"]["steps"]] == [1, 4, 9, 16]


def test_no_path_of_this_machine_is_written_down(found: Comparison, tiny_bundle: Path) -> None:
    for name in ("report.html", "report.json"):
        assert str(tiny_bundle.parent) not in (found.report.parent / name).read_text(encoding="utf-8")


def test_every_picture_is_a_png_that_says_what_it_is(found: Comparison, data: Any) -> None:
    folder = found.report.parent
    assert set(data["files"]) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {
        "report.json"
    }
    with Image.open(folder / picture_name(found.measured, "pruned", 3)) as image:
        image.load()
        assert np.array_equal(np.asarray(image), found.measured.records["pruned"].pictures[3])
        text = getattr(image, "text", {})
    assert (text["nextscale.side"], text["nextscale.seed"], text["nextscale.image"]) == ("pruned", "1", "1")
    assert text["nextscale.label"] == str(found.measured.asked.labels[3])


def test_the_classes_are_spread_over_all(found: Comparison) -> None:
    assert found.measured.asked.labels == (0, 2, 5, 7)


@pytest.mark.parametrize(
    ("bundle", "weight"),
    [
        ("tiny_bundle", "var/blocks.1.ffn.fc2.weight"),
        ("tiny_pruned_bundle", "var/blocks.1.ffn.fc2.weight"),
        ("tiny_bundle", "vae/decoder.conv_out.weight"),
    ],
)
def test_other_weights_with_right_hashes_are_found(
    request: pytest.FixtureRequest, tiny_checkpoint: tuple[Path, Path], tmp_path: Path, bundle: str, weight: str
) -> None:
    broken = with_other_weights(request.getfixturevalue(bundle), tmp_path / "broken", weight, lambda w: w * 1.01)
    found = compare([broken], *tiny_checkpoint, tmp_path / "report", QUICK)
    assert not found.held
    assert (found.verdicts[0].within, found.verdicts[0].wrong) == (0, 4)
    assert all(p.error > 1e-4 for p in found.measured.parities["broken"])
    assert (found.verdicts[0].where == "decode") == weight.startswith("vae/")
    assert "parity not held" in found.report.read_text(encoding="utf-8")
    with pytest.raises(ParityError, match="broken: parity not held, 4 of 4 pictures"):
        found.check()


def test_a_report_replaces_its_own_files_only(
    tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    compare([tiny_bundle], *tiny_checkpoint, out, Options(pictures=2, threads=1, memory=False))
    (out / "notes.txt").write_text("mine")
    compare([tiny_bundle], *tiny_checkpoint, out, Options(pictures=1, threads=1, memory=False))
    assert (out / "notes.txt").exists()
    assert len(list((out / "pictures").iterdir())) == 2


def test_a_folder_of_something_else_is_refused_before_anything_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    nowhere = Path("nowhere")
    with pytest.raises(InputError, match="not a folder of this command"):
        compare([tiny_bundle], nowhere, nowhere, tmp_path, QUICK)


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = Path("nowhere")
    with pytest.raises(EnvironmentProblem, match="report cannot be written"):
        compare([tiny_bundle], nowhere, nowhere, tmp_path / "file" / "report", QUICK)


def test_the_checkpoint_of_another_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from nextscale.export.draw import draw_checkpoint

    other = replace(tiny.MODEL, depth=3)
    files = draw_checkpoint(other, tiny.TOKENIZER, tiny.SCHEDULE, tmp_path / "drawn", 0)
    with pytest.raises(InputError, match="their model is"):
        compare([tiny_bundle], *files, tmp_path / "report", QUICK)


def test_another_checkpoint_of_the_same_model_differs_and_is_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    found = compare([tiny_bundle], *tiny.draw_tiny(tmp_path / "drawn", seed=1), tmp_path / "report", QUICK)
    with pytest.raises(ParityError, match="made from other checkpoint files"):
        found.check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(pictures=0), "pictures is a whole number from 1 on"),
        (Options(pictures=4, batch=3), "4 pictures cannot be made in runs of 3"),
        (Options(threads=0), "threads is a whole number from 1 on"),
        (Options(warm_up=-1), "warm_up is a whole number from 0 on"),
        (Options(seed=-1), "seed is a whole number from 0"),
        (Options(seed=2**63 - 1), "seed is a whole number from 0"),  # the last run's is one more
        (Options(guidance_scale=float("nan")), "guidance_scale is a number above"),
        (Options(temperature=0.0), "temperature is a number above"),
        (Options(top_p=1.5), "top_p is a number above"),
    ],
)
def test_options_that_cannot_be_run_are_refused(options: Options, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        options.check()


def test_torch_compile_is_a_column(tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    names = ("eager", "torch.compile", "onnxruntime")
    options = Options(pictures=2, threads=1, memory=False, warm_up=0, backends=names)
    if why := lacking("torch.compile", "cpu"):
        pytest.skip(why)
    found = compare([tiny_bundle], *tiny_checkpoint, tmp_path / "report", options)
    assert list(found.measured.records) == ["eager full", "torch.compile full", "full"]
    assert found.held
    compiled = found.measured.records["torch.compile full"]
    assert compiled.warm_up[0] > max(compiled.totals), "what compiles is not counted"
    assert len(compiled.totals) == 2
    data = json.loads((found.report.parent / "report.json").read_text())
    assert data["columns"]["names"] == list(names)
    assert data["sides"][1]["warm_up"] == compiled.warm_up
    assert data["parity"].keys() == {"torch.compile full", "full"}
    assert len(data["parity"]["torch.compile full"]["steps"]) == 4


def test_eager_alone_compares_the_full_model_with_the_plan(
    tiny_checkpoint: tuple[Path, Path], tiny_pruned_bundle: Path, tmp_path: Path
) -> None:
    options = Options(pictures=1, threads=1, memory=False, backends=("eager",))
    found = compare([tiny_pruned_bundle], *tiny_checkpoint, tmp_path / "report", options)
    assert list(found.measured.records) == ["eager full", "eager as pruned"]
    assert found.held
    assert found.verdicts == ()
    assert "<h1>eager full, eager as pruned against eager PyTorch</h1>" in found.report.read_text(encoding="utf-8")
