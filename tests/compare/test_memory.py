"""The process that measures memory says why a side is refused; only a process that died is the environment's."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.damage import with_other_weights

from nextscale.compare.lineup import make_specs
from nextscale.compare.memory import measure
from nextscale.compare.sides import Ask, Opener, Spec
from nextscale.plan.errors import EnvironmentProblem, InputError

ASK = Ask((0,), 0, 1.5, 1.0, 1.0)


def opener(files: tuple[Path, Path], spec: Spec) -> Opener:
    return Opener(*files, "cpu", 1, 1, spec.plan)


def test_what_lies_in_the_working_directory_is_not_loaded(
    tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    bundle = make_specs([tiny_bundle])[0][1]
    found = measure(opener(tiny_checkpoint, bundle), bundle, ASK)
    assert found is None or found.before < found.peak


def test_a_refusal_keeps_its_status_and_its_sentence(
    tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = with_other_weights(tiny_bundle, tmp_path / "b", "var/head.bias", lambda w: -w, honest=False)
    eager, bundle = make_specs([tiny_bundle])[0]
    with pytest.raises(InputError, match=r"weights.safetensors was changed or damaged"):
        measure(opener(tiny_checkpoint, bundle), Spec("b", bundle.plan, "fp32", broken, column="onnxruntime"), ASK)
    with pytest.raises(InputError, match="no checkpoint at nowhere"):
        measure(opener((Path("nowhere"), Path("nowhere")), eager), eager, ASK)


def test_a_process_that_dies_is_the_environments(tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path) -> None:
    eager = make_specs([tiny_bundle])[0][0]
    dying = opener(tiny_checkpoint, eager)
    dying.threads = "many"  # type: ignore[assignment]
    with pytest.raises(EnvironmentProblem, match="compare without memory, or with fewer pictures"):
        measure(dying, eager, ASK)
