"""The support table: no cell says more than a result does."""

from __future__ import annotations

from typing import Any

import pytest
import support_table as support

PLAIN, TWIN = "onnxruntime CPU, eager inputs", "float32 twin on onnxruntime CPU, eager inputs"
BOTH = "float32 twin, then onnxruntime CPU, eager inputs"


def finding(section: str, state: str = "passed", reason: str | None = None, data: Any = None, **subject: str) -> Any:
    return {"section": section, "subject": subject, "state": state, "reason": reason, "data": data or {}}


def check(*findings: Any, gpu: str | None = None, date: str = "2026-11-21") -> Any:
    facts = None if gpu is None else {"name": gpu}
    return {"machine": {"date": f"{date}T07:00:00+00:00"}, "gpu": facts, "findings": list(findings)}


def parity(
    backend: str,
    precision: str,
    device: str = "cuda",
    state: str = "passed",
    reason: str | None = None,
    data: Any = None,
) -> Any:
    return finding("parity", state, reason, data, backend=backend, device=device, precision=precision, recipe="demo")


def cells(checks: list[Any], backend: str, precision: str, builds: list[Any] | None = None) -> list[str]:
    rows = [line.strip("| ").split(" | ") for line in support.table(checks, builds or []).splitlines()]
    (row,) = (row for row in rows if row[:2] == [backend, precision])
    return row[2:]


def test_nothing_was_run() -> None:
    lines = support.table([], []).splitlines()
    assert len(lines) == 2 + 4 * 3
    for line in lines[2:]:
        assert "yes" not in line
        assert line.endswith("| not run |")
        assert "sm" not in line
        assert "20" not in line


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (PLAIN, "every graph against eager PyTorch"),
        (BOTH, "every graph against eager PyTorch, and every node against its float32 twin"),
        (TWIN, "its float32 twin against eager PyTorch, and every node against that"),
    ],
)
def test_how_an_export_was_verified(how: str, words: str) -> None:
    made = check(finding("export", data={"how": [how]}, recipe="demo", precision="fp16"))
    assert cells([made], "`tensorrt`", "fp16")[:2] == ["yes", words]
    assert cells([made], "`tensorrt`", "fp32")[:2] == ["not run", "not run"]


def test_an_export_that_failed_is_none() -> None:
    made = check(finding("export", "failed", "differs", recipe="demo", precision="fp32"))
    assert cells([made], "`onnxruntime`, CPU", "fp32")[:2] == ["not run", "not run"]


def test_a_build_is_no_execution() -> None:
    built = finding("build", data={"target": "sm120"}, backend="tensorrt-rtx", precision="fp16", recipe="demo")
    lost = finding("build", "failed", "too large", backend="tensorrt-rtx", precision="fp32", recipe="demo")
    elsewhere = [{"flavor": "tensorrt-rtx", "target": "sm86", "precision": "fp16", "recipe": "var-d16"}]
    assert cells([check(built, lost)], "`tensorrt-rtx`", "fp16", elsewhere)[2:] == ["sm86, sm120", "not run"]
    assert cells([check(built, lost)], "`tensorrt-rtx`", "fp32", elsewhere)[2:] == ["nothing yet", "not run"]
    assert cells([check(built)], "`tensorrt`", "fp16", elsewhere)[2:] == ["nothing yet", "not run"]


def test_an_execution_names_its_gpu_and_its_day() -> None:
    found = [
        check(parity("tensorrt", "fp16"), gpu="H200", date="2026-01-02"),
        check(parity("tensorrt", "fp16"), gpu="RTX 4090", date="2026-03-04"),
        check(parity("tensorrt", "fp16"), gpu="H200", date="2026-05-06"),
    ]
    assert cells(found, "`tensorrt`", "fp16")[3] == "H200, 2026-05-06; RTX 4090, 2026-03-04"
    assert cells(found, "`tensorrt-rtx`", "fp16")[3] == "not run"
    assert cells(found, "`tensorrt`", "bf16")[3] == "not run"


def test_a_cpu_is_no_gpu() -> None:
    found = [check(parity("onnxruntime", "fp32", device="cpu"))]
    assert cells(found, "`onnxruntime`, CPU", "fp32")[3] == "CPU, 2026-11-21"
    assert cells(found, "`onnxruntime`, CUDA", "fp32")[3] == "not run"


def test_numbers_that_differ_are_told() -> None:
    wrong = parity("tensorrt", "fp16", state="failed", reason="x", data={"error": 2.0})
    found = [check(parity("tensorrt", "fp16"), wrong, gpu="H200")]
    assert cells(found, "`tensorrt`", "fp16")[3] == "H200, 2026-11-21: **numbers differ**"
    broken = check(parity("tensorrt", "fp16", state="failed", reason="RuntimeError"), gpu="H200")
    assert cells([broken], "`tensorrt`", "fp16")[3] == "H200, 2026-11-21: **fails**"


def test_another_way_to_build_that_failed_is_told() -> None:
    wrong = parity("tensorrt, weights embedded", "fp16", state="failed", reason="x", data={"error": 2.0})
    lost = finding("build", "failed", "y", backend="tensorrt, restore by function", recipe="demo", precision="fp16")
    found = [check(parity("tensorrt", "fp16"), parity("tensorrt", "fp32"), wrong, lost, gpu="H200")]
    told = "H200, 2026-11-21: **numbers differ with weights embedded, fails with restore by function**"
    assert cells(found, "`tensorrt`", "fp16")[3] == told
    assert cells(found, "`tensorrt`", "fp32")[3] == "H200, 2026-11-21"


def test_what_cannot_be_computed_is_told_and_what_had_no_time_is_not() -> None:
    never = parity("onnxruntime", "bf16", "cpu", "not run", "onnxruntime does not compute bf16 on cpu")
    late = parity("onnxruntime", "fp16", "cpu", "not run", "it takes about 30 s, and 590 of 600 s are over")
    assert cells([check(never, late)], "`onnxruntime`, CPU", "bf16")[3] == "no: it does not compute bf16 there"
    assert cells([check(never, late)], "`onnxruntime`, CPU", "fp16")[3] == "not run"


def test_a_variant_of_engines_is_not_the_usual_one() -> None:
    found = [check(parity("tensorrt, weights embedded", "fp16"), gpu="H200")]
    assert cells(found, "`tensorrt`", "fp16")[3] == "not run"
