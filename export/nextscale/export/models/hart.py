"""HART: text as the first step's tokens, llama blocks without adaLN, a residual diffusion at the end.

Source: mit-han-lab/hart; the sheet's section 3. Module names are the published state dict's keys. Upstream's other
branches (adaLN inside blocks, a shared table of it, cross-attention, GPT-2 blocks) are not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models import contract
from nextscale.export.models.attention import SelfAttention, at
from nextscale.export.models.contract import BlockOutput, Conditions, Derived, Past, Rotation
from nextscale.export.models.diffusion import NumberEmbedding, ResidualDiffusion, normals
from nextscale.export.models.layers import AdaLin, RMSNorm
from nextscale.export.models.mixed_rope import frequencies, grid_rotation, text_rotation, turn
from nextscale.export.models.ops import linear
from nextscale.export.models.pruning import run_sub_layers
from nextscale.export.models.resize import Resize
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Grid, Layer, Model, Step


class GatedFeedForward(nn.Module):
    """``down(silu(gate(y)) * up(y))``, no biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        """(R, m, C) to the same shape."""
        return linear(F.silu(linear(y, self.gate_proj.weight)) * linear(y, self.up_proj.weight), self.down_proj.weight)


class HeadNorm(nn.Module):
    """The norm before the head with a weight of its own (whatever its key says), and the head's adaLN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_wo_grad = RMSNorm(width)
        self.ada_lin = AdaLin(width, 2)


class Block(contract.Block):
    """Attention and gated FFN, either of which may be pruned by the plan; one norm weight serves both."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.ln_wo_grad = RMSNorm(model.width)
        self.attn = SelfAttention(model, qkv="qkv_proj", turn=turn)
        self.ffn = GatedFeedForward(model.width, model.ffn_width)

    def forward(
        self,
        x: Tensor,
        cond: Mapping[str, Tensor],
        layer: Layer,
        grid: Grid,
        resize: Resize,
        past: Past | None = None,
        caches: Mapping[str, tuple[Tensor, Grid]] | None = None,
        rotation: Rotation | None = None,
        bias: Tensor | None = None,
    ) -> BlockOutput:
        """``x`` (R, n, C) as the contract has it; it reads no conditions, and updates have no gates."""
        dtype, rows = self.attn.proj.weight.dtype, {}

        def attn(tokens: Tensor, index: Tensor | None) -> Tensor:
            y = self.ln_wo_grad(tokens).to(dtype)
            update: Tensor
            update, rows["key"], rows["value"] = self.attn(y, past, at(rotation, index), bias)
            return update

        def ffn(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = self.ffn(self.ln_wo_grad(tokens).to(dtype))
            return update

        computes = {"attn": attn, "ffn": ffn}
        x, written = run_sub_layers(x, layer, computes, grid, resize, caches)
        return BlockOutput(x, rows["key"], rows["value"], written)


class HART(contract.Transformer):
    """The transformer for one schedule; ``model`` has a text that is a prefix, rotary positions and a diffusion.

    Raises :class:`PlanError` for a model without them, or with a head size that four does not divide.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        **SelfAttention.DERIVED,
        **ResidualDiffusion.DERIVED,
        "level": Derived("lvl_embed[scale]", ("lvl_embed.weight",)),
        "level_mlp": Derived(
            "MLP of the sinusoids of a scale's number", tuple(f"lvl_embed.{name}" for name in NumberEmbedding.SOURCES)
        ),
        "text_frequency": Derived("10000^(-2j/head_dim), j < head_dim / 2"),
        "grid_frequency": Derived("10000^(-4j/head_dim), j < head_dim / 4"),
    }
    FLOAT32: ClassVar[frozenset[str]] = frozenset({"q_scale", "scale_mul_1H11"})

    def __init__(self, model: Model, schedule: Sequence[Grid]) -> None:
        super().__init__()
        text, diffusion, width = model.text, model.diffusion, model.width
        if text is None or text.use != "prefix" or diffusion is None or model.rope != "text" or model.head_dim % 4:
            raise PlanError(
                "a HART has a text that is a prefix, positions that go on from it, a residual diffusion and heads of a "
                f"size that four divides; found {text}, rope {model.rope!r}, {diffusion} and heads of {model.head_dim}"
            )
        self.model, self.schedule = model, tuple(schedule)
        self.word_embed = nn.Linear(model.code_channels, width)
        self.context_norm = RMSNorm(text.width) if text.norm else nn.Identity()
        self.context_embed = nn.Linear(text.width, width)
        self.lvl_embed: NumberEmbedding | nn.Embedding
        self.lvl_embed = NumberEmbedding(width) if model.level_mlp else nn.Embedding(len(self.schedule), width)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, model.vocabulary)
        self.decoder_norm = RMSNorm(width)
        self.diffloss = ResidualDiffusion(model.code_channels, width, diffusion.width, diffusion.depth, diffusion.steps)
        self.resize = Resize()

    def layer(self, index: int) -> Block:
        """The block of a layer."""
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    def level(self, scale: int) -> Tensor:
        """The embedding of a scale's number, (C,) float32; the text's is that of scale 0."""
        name = self._level_name(scale)
        if name in self._buffers:
            return self.get_buffer(name)
        levels = self.lvl_embed
        embedded: Tensor = levels(scale) if isinstance(levels, NumberEmbedding) else levels.weight[scale]
        return embedded

    def _level_name(self, scale: int) -> str:
        return f"{'level_mlp' if self.model.level_mlp else 'level'}_{scale:02d}"

    def frequency(self, name: str) -> Tensor:
        """``text_frequency`` (hd / 2,) or ``grid_frequency`` (hd / 4,), float32."""
        if name in self._buffers:
            return self.get_buffer(name)
        return frequencies(self.model.head_dim, 2 if name == "text_frequency" else 4, self.word_embed.weight.device)

    def fold(self) -> Self:
        """Makes every derived tensor; afterwards the parameters behind them are idle."""
        with torch.no_grad():
            for scale in range(len(self.schedule)):
                self.register_buffer(self._level_name(scale), self.level(scale).clone(), persistent=False)
            for name in ("text_frequency", "grid_frequency"):
                self.register_buffer(name, self.frequency(name), persistent=False)
            for index in range(self.model.depth):
                self.layer(index).attn.fold()
            self.diffloss.net.fold()
        return self

    def computing(self) -> Iterable[nn.Module]:
        """Attention and FFN, the head with its adaLN, and the denoiser's wide matrices.

        Norms, embeddings, positions and the diffusion's arithmetic stay float32, as the residual stream does.
        """
        blocks = (block.get_submodule(part) for block in self.blocks for part in ("attn", "ffn"))
        return (*blocks, self.head_nm.ada_lin, self.head, *self.diffloss.computing())

    def begin(self, given: Mapping[str, Tensor], guidance_rows: int) -> Conditions:
        """``text`` (B, CT, CD) float32 and ``text_length`` (B,) int32 to the conditions of all rows.

        Every one of the CT features is a token that later tokens attend to, as upstream has it: those behind a text's
        length are the text encoder's states of its padding, and stand at the last position of the text. Further rows
        have features of zeros, all of them at position 0. The head's condition is the largest value over the tokens.
        """
        text, last = given["text"], given["text_length"].float() - 1
        context = torch.cat([text] + [torch.zeros_like(text)] * (guidance_rows - 1))  # (R, CT, CD)
        sos = linear(self.context_norm(context), self.context_embed.weight, self.context_embed.bias)
        position = torch.cat([last] + [torch.zeros_like(last)] * (guidance_rows - 1))
        return {"sos": sos, "position": position, "head": self.head_nm.ada_lin(sos.amax(dim=1))}

    def embed(self, step: Step, source: Tensor, guidance_rows: int) -> Tensor:
        """The residual stream (R, n, C): of the text's tokens (R, CT, C) in the first step, else of a map (B, n, Z)."""
        if step.order == 0:
            return source + self.level(0)
        x = linear(source, self.word_embed.weight, self.word_embed.bias) + self.level(step.scale)
        return x.repeat(guidance_rows, 1, 1)

    def rotation(self, step: Step, cond: Mapping[str, Tensor]) -> Rotation:
        """Cosines and sines (R, n, 1, hd) float32, from ``position`` (R,), where each row's text ends."""
        position = cond["position"]
        if step.order == 0:
            return text_rotation(step.tokens_in, position, self.frequency("text_frequency"))
        of = self.model.rope_grid or self.schedule[-1]
        return grid_rotation(step.grid, of, position, self.frequency("grid_frequency"))

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """(R, n, C) and head adaLN (R, 2, C) to (R, n, V) float32."""
        scale, shift = head.split(1, dim=1)  # (R, 1, C) each
        y = (self.head_nm.ln_wo_grad(x) * (1 + scale) + shift).to(self.head.weight.dtype)
        return linear(y, self.head.weight, self.head.bias).float()

    def refine(self, x: Tensor, codes: Tensor, guidance: Tensor, noise: Tensor) -> Tensor:
        """As the contract has it; uniforms become normals by :func:`~nextscale.export.models.diffusion.normals`."""
        residual: Tensor = self.diffloss(self.denoised_by(x, codes, guidance.shape[1]), normals(noise), guidance)
        return residual

    def denoised_by(self, x: Tensor, codes: Tensor, guidance_rows: int) -> Tensor:
        """What conditions the diffusion: (R, n, C) float32 of the residual stream and the drawn codes (B, n, Z)."""
        drawn = linear(codes, self.word_embed.weight, self.word_embed.bias)
        condition: Tensor = self.decoder_norm(x + drawn.repeat(guidance_rows, 1, 1))
        return condition
