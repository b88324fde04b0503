"""The eager HART under recorded tokens and noise against a trace of the original implementation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.golden import GOLDEN, TOLERANCE, draw, draw_weights
from torch import Tensor

from nextscale.export.eager import Eager, EagerStep, Request
from nextscale.export.hart_config import HartConfig, hart_model_of
from nextscale.export.models import mixed_rope
from nextscale.export.models.contract import Rotation
from nextscale.export.models.hart import HART
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.families.hart import hart_plan
from nextscale.plan.types import Grid, Plan, Sampling, Step, Tokenizer

LAST = 13


@dataclass
class Replay:
    """The recorded case, its models, and what the last step's diffusion was given and made."""

    info: dict[str, Any]
    trace: dict[str, np.ndarray]
    state: dict[str, dict[str, Tensor]]
    plan: Plan
    hart: HART
    vae: VQVAE
    condition: Tensor | None = None
    residual: Tensor | None = None

    @property
    def tolerance(self) -> float:
        return TOLERANCE * max(1.0, *map(float, self.info["checks"]["logit_std"].values()))

    @property
    def eager(self) -> Eager:
        return Eager(self.plan, self.hart, self.vae)

    def request(self, text: np.ndarray | None = None) -> Request:
        weights, asked = self.info["weights"], self.info["conditioning"]
        own = asked["text"]
        features = draw(weights["seed"], own["name"], own["shape"], own["mean"], own["std"])[0].numpy()
        tokens = {i: torch.from_numpy(self.trace[f"ids_{i}"]) for i in range(len(self.plan.steps))}
        subject = (features if text is None else text, sum(asked["context_mask"]))
        return Request([subject], guidance_scale=self.info["sampling"]["cfg"], tokens=tokens)

    def normals(self) -> Tensor:
        """The recorded noise, (1, n, 8, Z): upstream draws a start for each token, then at each step for all rows."""
        torch.manual_seed(self.info["sampling"]["torch_global_seed"])
        n, z = 64 * 64, self.hart.model.code_channels
        drawn = [torch.randn(n, z), *(torch.randn(2 * n, z)[:n] for _ in range(7))]
        return torch.stack(drawn, dim=1)[None]

    def refine(self, x: Tensor, codes: Tensor, guidance: Tensor, noise: Tensor) -> Tensor:
        """The model's own refinement, from the recorded normals in place of those of uniforms."""
        self.condition = self.hart.denoised_by(x, codes, guidance.shape[1])
        self.residual = self.hart.diffloss(self.condition, self.normals(), guidance)
        return self.residual


def load() -> Replay:
    folder = GOLDEN / "hart_base"
    info = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    with np.load(folder / "trace.npz") as arrays:
        trace = dict(arrays)
    state, v = draw_weights(info["weights"]), info["vae"]
    config = HartConfig(Path("config.json"), {**info["model"], "patch_nums": [h for h, _ in info["schedule"]]})
    model = hart_model_of(state["hart:"], config, folder)
    tokenizer = Tokenizer(
        v["ch"], tuple(v["ch_mult"]), v["num_res_blocks_decoder"], v["z_channels"], v["vocab_size"], v["stride"]
    )
    plan = hart_plan("hart_base", model, tokenizer, config.schedule, Sampling(600))
    hart, vae = HART(model, config.schedule), VQVAE(tokenizer, len(config.schedule))
    hart.load_state_dict(state["hart:"])
    missing, unexpected = vae.load_state_dict(
        {key.removeprefix("vae."): tensor for key, tensor in state["harttok:"].items()}, strict=False
    )
    assert (missing, unexpected) == (["quantize.ema_vocab_hit_SV"], [])
    return Replay(info, trace, state, plan, hart.eval().requires_grad_(False), vae.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def run() -> tuple[Replay, list[EagerStep]]:
    replay = load()
    replay.hart.refine = replay.refine  # type: ignore[method-assign]
    return replay, list(replay.eager.stream(replay.request()))


def stats(channels_first: Tensor) -> np.ndarray:
    flat = channels_first.flatten(2).double()
    return torch.stack((flat.mean(2), flat.std(2, correction=0)), dim=2).numpy()


def test_drawn_weights_are_the_recorded_ones(run: tuple[Replay, list[EagerStep]]) -> None:
    replay = run[0]
    for prefix, recorded in replay.info["weights"]["abs_sum"].items():
        total = sum(float(t.double().abs().sum()) for t in replay.state[prefix].values())
        assert total == pytest.approx(recorded, rel=1e-6)


def test_the_plan_is_the_recorded_chain(run: tuple[Replay, list[EagerStep]]) -> None:
    replay = run[0]
    steps = replay.plan.steps
    assert [step.order for step in steps] == replay.info["trace"]["steps_run"]
    assert [step.next_input.phi for step in steps] == replay.info["vae"]["phi_index_per_step"]
    assert [step.order for step in steps if step.diffusion] == [LAST]
    assert steps[0].tokens_in == replay.info["model"]["context_token"]
    assert [s.trained for s in reversed(replay.hart.diffloss.steps)] == replay.info["model"]["diff_timestep_map"]
    assert replay.hart.layer(0).attn.scale == replay.info["model"]["softmax_scale"]


def test_logits(run: tuple[Replay, list[EagerStep]]) -> None:
    replay, steps = run
    for i, done in enumerate(steps):
        got = done.prediction.logits[:, replay.trace[f"pos_{i}"]].numpy()
        assert np.abs(got - replay.trace[f"logits_{i}"]).max() <= replay.tolerance, f"step {i}"


def test_code_sums_and_next_inputs(run: tuple[Replay, list[EagerStep]]) -> None:
    replay, steps = run
    for i, done in enumerate(steps):
        atol = replay.tolerance
        np.testing.assert_allclose(stats(done.prediction.code_sum), replay.trace[f"fhat_stat_{i}"], atol=atol)
        if done.prediction.next_map is not None:
            channels_first = done.prediction.next_map.transpose(1, 2)
            np.testing.assert_allclose(stats(channels_first), replay.trace[f"next_stat_{i}"], atol=atol)


def test_residual_diffusion(run: tuple[Replay, list[EagerStep]]) -> None:
    replay, steps = run
    assert replay.condition is not None
    assert replay.residual is not None
    at, trace, atol = replay.trace["diff_pos"], replay.trace, replay.tolerance
    np.testing.assert_allclose(replay.condition[:, at], trace["diff_cond"], atol=atol)
    np.testing.assert_allclose(replay.residual[0, at], trace["diff_out"], atol=atol)
    np.testing.assert_allclose(stats(replay.residual.transpose(1, 2)), trace["diff_out_stat"], atol=atol)
    final = steps[LAST].prediction.code_sum
    without = final - replay.residual.transpose(1, 2).reshape(final.shape)
    np.testing.assert_allclose(without[..., ::4, ::4], trace["fhat_nodiff"], atol=atol)
    np.testing.assert_allclose(stats(without), trace["fhat_nodiff_stat"], atol=atol)
    np.testing.assert_allclose(final[..., ::4, ::4], trace["fhat_final"], atol=atol)


def test_picture(run: tuple[Replay, list[EagerStep]]) -> None:
    replay, steps = run
    picture = replay.eager.decode(steps[LAST].prediction.code_sum)
    assert picture.shape[1:3] == tuple(replay.info["trace"]["image_hw"])
    channels_first = picture.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(channels_first[..., ::8, ::8], replay.trace["image_s8"], atol=replay.tolerance)
    np.testing.assert_allclose(stats(torch.from_numpy(channels_first)), replay.trace["image_stat"], atol=1e-4)


def worst_logits(replay: Replay, steps: int, text: np.ndarray | None = None) -> float:
    """The largest distance from the recorded logits over the first steps, in tolerances."""
    worst = 0.0
    for done in replay.eager.stream(replay.request(text)):
        if done.step.order == steps:
            break
        i = done.step.order
        got = done.prediction.logits[:, replay.trace[f"pos_{i}"]].numpy()
        worst = max(worst, float(np.abs(got - replay.trace[f"logits_{i}"]).max()))
    return worst / replay.tolerance


def true_rotation(hart: HART) -> Callable[[Step, dict[str, Tensor]], Rotation]:
    """Rotary positions in which both elements of a pair turn by the same angle, as two axes are usually done."""

    def rotation(step: Step, cond: dict[str, Tensor]) -> Rotation:
        tables = HART.rotation(hart, step, cond)
        if step.order == 0:
            return tables
        quarters = (table.chunk(4, dim=-1) for table in tables)
        return Rotation(*(torch.cat((y, x, y, x), dim=-1) for y, _, x, _ in quarters))

    return rotation


def one_position(hart: HART) -> Callable[[Step, dict[str, Tensor]], Rotation]:
    """The unconditional row where the text's own ends."""
    return lambda step, cond: HART.rotation(hart, step, {**cond, "position": cond["position"][:1].expand(2)})


@pytest.mark.parametrize("mistake", [true_rotation, one_position])
def test_other_rotations_are_told(mistake: Callable[[HART], Any]) -> None:
    replay = load()
    assert worst_logits(replay, 5) <= 1
    replay.hart.rotation = mistake(replay.hart)  # type: ignore[method-assign]
    assert worst_logits(replay, 5) > 100


def test_places_in_units_of_their_own_grid_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    places = mixed_rope.places

    def own(grid: Grid, of: Grid, device: torch.device) -> Tensor:
        return places(grid, grid, device)

    monkeypatch.setattr(mixed_rope, "places", own)
    assert worst_logits(load(), 5) > 100


def test_text_behind_its_length_is_attended() -> None:
    replay = load()
    text = replay.request().subjects[0][0].copy()  # type: ignore[index, union-attr]
    text[8:] = 0
    assert worst_logits(replay, 5, text) > 100


def test_a_residual_convolution_at_the_last_scale_is_told(run: tuple[Replay, list[EagerStep]]) -> None:
    replay, steps = run
    assert replay.residual is not None
    before, last = steps[LAST - 1].prediction, steps[LAST].step
    codes = replay.vae.quantize.codes(torch.from_numpy(replay.trace[f"ids_{LAST}"]), last.grid)
    rules = {phi: replace(last.next_input, phi=phi) for phi in (None, 3)}
    for phi, rule in rules.items():
        total = before.code_sum + replay.vae.quantize.contribution(codes, last.grid, rule.up, rule.phi)
        off = np.abs(total[..., ::4, ::4].numpy() - replay.trace["fhat_nodiff"]).max()
        assert (off <= replay.tolerance) == (phi is None)
