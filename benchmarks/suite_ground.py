"""Where the suite's checkpoints, bundles, targets and hand-made graphs lie: made once, kept where a folder is named."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite_subjects import DYNAMIC, FULL, OURS, Contender, Subject, Variant

from nextscale.compare.sides import Opener
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.draw import draw_checkpoint
from nextscale.export.graphs import Traced
from nextscale.plan.types import Plan
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.backends.packed.build import build_packed
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import Recipe as Named

Say = Callable[[str], None]
MADE = "made.json"  # beside what was made: how long it took


@dataclass
class Ground:
    """A subject's folder, and its checkpoint opened once for all sides of PyTorch."""

    subject: Subject
    folder: Path
    threads: int
    say: Say
    traced: Traced = field(default_factory=dict)

    def files(self) -> tuple[Path, Path]:
        """The transformer's and the tokenizer's file: the subject's own, or drawn now unless they are there."""
        folder = self.subject.folder or self.folder / "drawn"
        if not folder.exists():
            self.say("drawing weights")
            chosen = self.subject.recipe
            return draw_checkpoint(chosen.model, chosen.tokenizer, chosen.schedule, folder, form="safetensors")
        (vae,) = [*folder.glob("vae*.safetensors"), *folder.glob("vae*.pth")]
        (model,) = [*folder.glob("var*.safetensors"), *folder.glob("var*.pth")]
        return model, vae

    def opener(self) -> Opener:
        """What opens sides, over one loaded checkpoint."""
        return Opener(*self.files(), "cpu", self.threads, 1, self.subject.plan(self.subject.variant(FULL)))

    def plan(self, contender: Contender) -> Plan:
        """What a contender runs."""
        return self.subject.plan(self.subject.variant(contender.variant))

    def place(self, contender: Contender) -> Path | None:
        """What a contender opens, made now unless it is there; None for PyTorch."""
        if contender.side == OURS:
            return self.bundle(self.subject.variant(contender.variant))
        return self.dynamic() if contender.side == DYNAMIC else None

    def bundle(self, variant: Variant) -> Path:
        """A variant's bundle, exported and packed for this processor."""
        out = self.folder / re.sub(r"[^a-z0-9]+", "-", variant.name).strip("-")
        if not out.exists():
            self.say(f"exporting {variant.name}")
            start, shared = time.perf_counter(), bool(self.traced)
            named = Named(self.subject.recipe.name, self.subject.recipe.version)
            options = Options(self.subject.plan(variant), named, variant.precision, self.subject.check)
            export_bundle(self.opener().checkpoint, options, out, lambda *told: None, self.traced)
            self._remember(f"nextscale, {variant.name}", time.perf_counter() - start, shared)
        target = out.with_name(f"{out.name}.targets")
        there = target.exists()
        self.say(f"packing {variant.name}")
        seconds = build_packed(open_bundle(out, verify="size"), target, lambda *told: None).seconds
        if not there:
            self._remember(f"packing, {variant.name}", seconds, False)
        return out

    def dynamic(self) -> Path:
        """The graphs that one makes by hand."""
        from dynamic_onnx import export_dynamic
        from upstream_var import UpstreamVAR

        out = self.folder / "dynamic"
        if not out.exists():
            self.say("exporting by hand")
            opener, start = self.opener(), time.perf_counter()
            checkpoint = opener.checkpoint
            model = UpstreamVAR.over(opener.plan, checkpoint.var.state_dict(), checkpoint.vae.state_dict())
            export_dynamic(model, out)
            self._remember("dynamic ONNX", time.perf_counter() - start, False)
            gc.collect()
        return out

    def made(self) -> dict[str, Any]:
        """Seconds of what was exported and packed in this folder, by what it was, and what was shared with others."""
        path = self.folder / MADE
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def _remember(self, what: str, seconds: float, shared: bool) -> None:
        made = {**self.made(), what: {"seconds": seconds, "check": self.subject.check, "traces_shared": shared}}
        (self.folder / MADE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def available(subject: Subject, contenders: Sequence[Contender]) -> tuple[list[Contender], list[str]]:
    """Those whose precision runs here, and a sentence on each other."""
    found, left_out = list[Contender](), list[str]()
    for each in contenders:
        precision = subject.variant(each.variant).precision
        if precision in OnnxRuntime.precisions:
            found.append(each)
        else:
            left_out.append(f"{each} is left out: bundles in {precision} do not run on ONNX Runtime on the CPU yet")
    return found, left_out
