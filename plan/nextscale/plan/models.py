"""The numbers of a model that a plan depends on: the transformer, what text it reads, the tokenizer of its pictures."""

from __future__ import annotations

from dataclasses import dataclass

Grid = tuple[int, int]


@dataclass(frozen=True)
class Text:
    """Text features that condition a model: up to ``tokens`` vectors of ``width`` for a picture.

    ``use``: ``cross`` (blocks attend to them in their sub-layer ``ca``; a negative prompt, or a learned table in its
    place, conditions the second guidance row) or ``prefix`` (they are the first step's tokens; the second row has
    none). ``norm`` says that a prefix is normalised first.
    """

    tokens: int
    width: int
    use: str = "cross"
    norm: bool = True


@dataclass(frozen=True)
class Diffusion:
    """HART's residual diffusion: an MLP of ``depth`` residual blocks of ``width``, ``steps`` times for a token."""

    width: int
    depth: int
    steps: int = 8


@dataclass(frozen=True)
class Model:
    """The numbers of one weight set (a transformer) that a plan depends on.

    ``sub_layers`` are the sub-layers of a block in their order, by the checkpoint's own names (``attn``, ``ffn``;
    Infinity: ``sa``, ``ca``, ``ffn``). ``vocabulary`` is what one draw chooses from and ``bits`` how many draws make a
    token: 0 for one code of a codebook, else the bits of a bitwise head, each of a vocabulary of 2.
    ``code_channels`` is the width of a token of the input map. ``rope``: ``none``, ``grid`` (rotations that follow from
    the grid) or ``text`` (they go on from each row's last text position); ``rope_grid`` is the grid whose places they
    count, whatever the schedule ends with. ``gated_ffn`` is SwiGLU without biases; ``level_mlp`` embeds a scale's
    number by an MLP instead of a table. ``chunks`` is how many groups the blocks' keys stand in, 0 for none.
    """

    family: str
    depth: int
    width: int
    heads: int
    head_dim: int
    ffn_width: int
    vocabulary: int
    code_channels: int
    classes: int = 0
    sub_layers: tuple[str, ...] = ("attn", "ffn")
    qk_norm: bool = True
    adaln: bool = True
    shared_adaln: bool = False
    rope: str = "none"
    rope_grid: Grid | None = None
    gated_ffn: bool = False
    level_mlp: bool = False
    chunks: int = 0
    bits: int = 0
    text: Text | None = None
    diffusion: Diffusion | None = None

    @property
    def draws(self) -> tuple[int, ...]:
        """The axes of a token's draws behind the token's own: none for one code, ``(bits,)`` for a bitwise head."""
        return (self.bits,) if self.bits else ()

    @property
    def head_outputs(self) -> int:
        """Numbers that the head gives for a token: ``vocabulary`` for each draw."""
        return self.vocabulary * max(self.bits, 1)


@dataclass(frozen=True)
class Tokenizer:
    """The multi-scale tokenizer: what decoding costs and how large a picture is.

    ``stride`` is pixels per latent and axis; ``patch`` latents per token and axis (a token is ``patch`` squared latents
    side by side, of ``code_channels`` each); ``phi`` the number of partially shared residual convolutions, 0 without;
    ``norm_groups`` those of every group norm (a narrow tokenizer needs fewer than the published 32: with one channel a
    group, no level of colour passes). ``codebook`` tells a learned table of ``vocabulary`` codes, and a convolution
    before the decoder, from codes that are signs of bits; ``attention`` whether the decoder attends at its lowest
    level.
    """

    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    code_channels: int
    vocabulary: int
    stride: int
    phi: int = 4
    norm_groups: int = 32
    patch: int = 1
    codebook: bool = True
    attention: bool = True
