"""What eager sides keep on their device: the model in each precision, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextscale.compare.sides import Ask, EagerSide, Opener, Spec
from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.eager import Eager
from nextscale.plan.types import Plan
from nextscale.runtime.bundle import open_bundle


@pytest.fixture
def plans(tiny_bundle: Path, tiny_pruned_bundle: Path) -> list[Plan]:
    return [open_bundle(folder).manifest.plan for folder in (tiny_bundle, tiny_pruned_bundle)]


def tensors_of(eager: Eager) -> dict[str, torch.Tensor]:
    both = {"var": eager.var, "vae": eager.vae}.items()
    return {f"{part}/{name}": t for part, m in both for name, t in (*m.named_parameters(), *m.named_buffers())}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_the_prepared_model_is_moved_and_all_plans_share_it(
    tiny_checkpoint: tuple[Path, Path], plans: list[Plan], precision: str
) -> None:
    """On the device ``meta``, which is another one than the host's, as a GPU is."""
    opener = Opener(*tiny_checkpoint, "meta", 1, 1, plans[0])
    models = [opener.eager(plan, precision) for plan in plans]
    one, other = map(tensors_of, models)
    assert {tensor.device.type for tensor in (*one.values(), *other.values())} == {"meta"}
    checkpoint = (*opener.checkpoint.var.parameters(), *opener.checkpoint.vae.parameters())
    assert {(tensor.device.type, tensor.dtype) for tensor in checkpoint} == {("cpu", torch.float32)}
    weights = [name for name in one if "resize" not in name]
    assert all(one[name] is other[name] for name in weights), "each is there once"
    wanted = tensors_of(prepared(load_checkpoint(*tiny_checkpoint, plans[0].schedule), plans[0], precision))
    assert {name: t.dtype for name, t in one.items()} == {name: t.dtype for name, t in wanted.items()}
    assert models[0].var is not models[1].var, "what disturbs the one leaves the other alone"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_shared_model_makes_the_same_pictures(
    tiny_checkpoint: tuple[Path, Path], plans: list[Plan], precision: str
) -> None:
    opener = Opener(*tiny_checkpoint, "cpu", 1, 2, plans[0])
    ask = Ask((1, 2), 3, 1.5, 0.9, 1.0)
    for plan in plans:
        alone = EagerSide(prepared(load_checkpoint(*tiny_checkpoint, plan.schedule), plan, precision)).run(ask)
        shared = opener.open(Spec("it", plan, precision)).run(ask)
        assert (shared.pictures == alone.pictures).all()
        assert all((a == b).all() for a, b in zip(shared.tokens, alone.tokens, strict=True))
