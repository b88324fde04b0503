"""What is asked of pictures: by which way they were made, and what their memory is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny

from nextscale.compare.compiled import CompiledEager
from nextscale.compare.gpu_check import pictures
from nextscale.compare.gpu_check.findings import Failed, Notes, NotRun
from nextscale.compare.sides import Ask, EagerSide, Run
from nextscale.export.eager import Eager
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime.memory import MemoryReport

ASK = Ask((1,), seed=3, guidance_scale=1.5, top_p=0.9, temperature=1.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def eager() -> Eager:
    plan = plan_for(recipe("var-d16"), tiny.MODEL, tiny.TOKENIZER, tiny.SCHEDULE, tiny.SAMPLING)
    torch.manual_seed(0)
    return Eager(plan, VAR(tiny.MODEL, tiny.SCHEDULE), VQVAE(tiny.TOKENIZER, len(tiny.SCHEDULE), encoder=False))


class Backend:
    """The reference itself, but for what ``whole`` makes of pictures that are not made step by step."""

    settles = 0

    def __init__(self, whole: Callable[[np.ndarray], np.ndarray]) -> None:
        self.side, self.whole = EagerSide(eager()), whole

    def run(self, ask: Ask, logits: bool = False) -> Run:
        run = self.side.run(ask, logits)
        return run if logits else replace(run, pictures=self.whole(run.pictures))

    def versions(self) -> dict[str, str]:
        return {}


def reference() -> pictures.Reference:
    side = EagerSide(eager())
    return pictures.Reference(side.eager.plan, "fp32", side, ((ASK, side.run(ASK, logits=True)),))


def test_the_same_numbers_by_both_ways_pass() -> None:
    found = pictures.parity(reference(), Backend(lambda made: made))
    assert (found["error"], found["whole_from_stepwise"]) == (0.0, 0.0)


@pytest.mark.parametrize(("off", "error"), [(1e-6, 1e-6), (0.5, 0.5)])
def test_pictures_that_users_do_not_get_prove_nothing(off: float, error: float) -> None:
    with pytest.raises(Failed, match="1 of 1 pictures made whole differ") as wrong:
        pictures.parity(reference(), Backend(lambda made: made + np.float32(off)))
    assert wrong.value.data["error"] == pytest.approx(error, rel=0.1), "its pixels are those that are judged"


def test_all_is_compiled_in_one_run_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``torch.compile`` sees it; the code that it would make is not asked for, which takes minutes."""
    compiled, ticks = list[str](), list[int]()

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append("a graph")
        return graph.forward

    ordinary = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, mode, **rest: ordinary(model, backend=compiler, **rest))
    torch._dynamo.reset()
    plain = eager()
    found = pictures.compiling(CompiledEager(plain), ASK, 2, lambda: ticks.append(len(compiled)))
    graphs = 1 + len(plain.plan.steps) + 1
    assert ticks == list(range(1, graphs + 1)), "after begin, every step, and the decoder"
    assert len(compiled) == graphs, "nothing again when it is timed"
    assert found["runs"] == 2


def test_compiling_ends_when_the_time_is_up() -> None:
    notes = Notes(0.0)
    with pytest.raises(NotRun, match="over before it was done"):
        EagerSide(eager()).run(ASK, tick=notes.tick)


def test_memory_is_held_against_what_was_known_beforehand() -> None:
    report = MemoryReport({"weights": 100}, {"state": 10}, scratch=20, slots=2, images=1, taken=40)
    found = pictures.memory(report, 208)
    assert found["sum"] == 160
    assert found["device_over_sum"] == pytest.approx(1.3), "what was seen to go does not excuse itself"
    assert found["by_cause"] == {"weights": 100, "state": 10, "scratch": 20, "beside": 40}
    own = pictures.memory(replace(report, scratch=None), 160)
    assert own["sum"] == 160, "a backend's own scratch is in what was seen to go"
    assert "device" not in pictures.memory(report, None)


def test_what_pytorch_reserves_is_no_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5)
    assert pictures.without_torch(10) == 15
    assert pictures.without_torch(None) is None
