"""``nextscale compare`` on real bundles of a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from support.command import Command
from support.damage import with_other_weights

QUICK = ("--n", "2", "--threads", "1", "--no-memory", "--warm-up", "0")


def test_a_table_the_verdicts_and_where_the_report_is(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tiny_pruned_bundle: Path, tmp_path: Path
) -> None:
    model, vae = tiny_checkpoint
    out = tmp_path / "report"
    run = nextscale("compare", tiny_bundle, tiny_pruned_bundle, "--model", model, "--vae", vae, "-o", out, *QUICK)
    assert run.status == 0, run.err
    for text in ("eager full", "eager as pruned", "full: parity held", "pruned: parity held", str(out / "report.html")):
        assert text in run.out
    assert (out / "report.html").exists()


def test_json_is_the_report_itself(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    model, vae = tiny_checkpoint
    run = nextscale("compare", tiny_bundle, "--model", model, "--vae", vae, "-o", tmp_path, "--json", *QUICK)
    assert run.status == 0, run.err
    assert json.loads(run.out) == json.loads((tmp_path / "report.json").read_text())


def test_a_bundle_that_computes_something_else_has_status_4(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = with_other_weights(tiny_bundle, tmp_path / "broken", "var/blocks.0.attn.proj.weight", lambda w: -w)
    model, vae = tiny_checkpoint
    out = tmp_path / "report"
    run = nextscale("compare", broken, "--model", model, "--vae", vae, "-o", out, *QUICK)
    assert run.status == 4
    assert "broken: parity not held, 2 of 2 pictures differ" in run.err
    assert "Traceback" not in run.err
    assert (out / "report.html").exists()


def test_a_changed_file_with_its_old_hash_has_status_2(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = with_other_weights(
        tiny_bundle, tmp_path / "broken", "var/blocks.0.attn.proj.weight", lambda w: -w, honest=False
    )
    model, vae = tiny_checkpoint
    run = nextscale("compare", broken, "--model", model, "--vae", vae, "-o", tmp_path / "report")
    assert run.status == 2
    assert "was changed or damaged" in run.sentence


def test_an_unknown_backend_has_status_2_before_memory_is_measured(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    model, vae = tiny_checkpoint
    more = ("-o", tmp_path / "report", "--backend", "magic")
    run = nextscale("compare", tiny_bundle, "--model", model, "--vae", vae, *more)
    assert run.status == 2
    assert "backend 'magic' is none of" in run.sentence
    assert "memory" not in run.err


def test_files_the_wrong_way_round_have_status_2(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    model, vae = tiny_checkpoint
    run = nextscale("compare", tiny_bundle, "--model", vae, "--vae", model, "-o", tmp_path / "report", *QUICK)
    assert run.status == 2
    assert "is no VAR transformer" in run.sentence


def test_a_folder_of_something_else_has_status_2(
    nextscale: Command, tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    model, vae = tiny_checkpoint
    run = nextscale("compare", tiny_bundle, "--model", model, "--vae", vae, "-o", tmp_path, *QUICK)
    assert run.status == 2
    assert "name another with -o" in run.sentence


def test_a_number_that_cannot_be_run_has_status_2(nextscale: Command, toy: Path, tmp_path: Path) -> None:
    files = ("--model", "m", "--vae", "v", "-o", tmp_path / "report")
    run = nextscale("compare", toy, *files, "--n", "4", "--batch", "3")
    assert run.status == 2
    assert "take a multiple" in run.sentence
