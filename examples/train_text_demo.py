"""Trains a small text-to-image model of Infinity's kind on the demo's world with sentences.

    python examples/train_text_demo.py --out checkpoints/text --work /somewhere/outside     # hours on two cores

Bitwise tokenizer, then the transformer; the text encoder is a small T5 with drawn weights that stay as they are: it
tells words and their order apart, which is all that the transformer needs of it, and has its own SentencePiece model.
Stages may be run one by one and resume where they were interrupted (Ctrl-C saves). The result has the published
layout: ``infinity.safetensors``, ``vae.safetensors``, ``config.json``, and the encoder's folder ``text/``.

    python examples/evaluate_text_demo.py --checkpoint checkpoints/text --work /somewhere/outside
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitwise_training import Reader, train_tokenizer, train_transformer
from demo_training import save_weights
from demo_world import TRAINING
from numpy.typing import NDArray
from sentence_world import picture, sentence

from nextscale.export.models.bsq import BSQVAE
from nextscale.export.models.infinity import Infinity
from nextscale.export.text import load_text_encoder
from nextscale.plan.families.infinity import INFINITY_DEFAULTS, INFINITY_SAMPLING, infinity_model, infinity_plan
from nextscale.plan.schedules import squares
from nextscale.plan.types import Grid, Model, Plan, Text, Tokenizer
from nextscale.runtime.text import TextTokenizer

STAGES = ("text", "tokenizer", "transformer", "export")


@dataclass(frozen=True)
class Sizes:
    """Everything that is trained, in numbers."""

    schedule: tuple[Grid, ...] = squares(1, 2, 3, 4, 6, 8, 12, 16)
    depth: int = 8
    width: int = 256
    heads: int = 4
    chunks: int = 2
    bits: int = 16
    channels: int = 32
    norm_groups: int = 8
    text_tokens: int = 32
    text_width: int = 128

    @property
    def model(self) -> Model:
        """The transformer; a checkpoint holds a learned text of 512 tokens, as published ones do."""
        text = Text(512, self.text_width)
        return infinity_model(self.depth, self.width, self.heads, self.chunks, self.bits, text, 4 * self.width)

    @property
    def tokenizer(self) -> Tokenizer:
        """The bitwise tokenizer, stride 4."""
        return Tokenizer(
            self.channels,
            (1, 1, 2),
            res_blocks=1,
            code_channels=self.bits,
            vocabulary=2,
            stride=4,
            phi=0,
            norm_groups=self.norm_groups,
            codebook=False,
            attention=False,
        )

    @property
    def plan(self) -> Plan:
        """The plain chain, which training follows step by step."""
        numbers = (self.model, self.tokenizer, self.schedule)
        return infinity_plan("text-demo", *numbers, INFINITY_SAMPLING, defaults=INFINITY_DEFAULTS)


def write_encoder(folder: Path, sizes: Sizes, seed: int = 0) -> None:
    """A T5 encoder of two blocks with drawn weights and a tokenizer of some sentences, as transformers saves them."""
    import sentencepiece
    from transformers import T5Config, T5EncoderModel

    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=map(sentence, range(TRAINING[0], TRAINING[0] + 4000)),
        model_writer=pieces,
        vocab_size=96,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    numbers: dict[str, Any] = {
        "vocab_size": 256,
        "d_model": sizes.text_width,
        "d_kv": 32,
        "d_ff": 256,
        "num_layers": 2,
        "num_heads": 4,
    }
    model = T5EncoderModel(T5Config(**numbers, feed_forward_proj="gated-gelu", pad_token_id=0))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # embeddings of unit size, other matrices of about unit gain
                spread = 1.0 if "embed" in name or "shared" in name else 0.7 * parameter.shape[1] ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=draw))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(pieces.getvalue())


def load_reader(folder: Path, sizes: Sizes) -> Reader:
    """The encoder's folder, as the exporter reads it."""
    loaded = load_text_encoder(folder, sizes.text_tokens, width=sizes.text_width)
    return Reader(TextTokenizer(loaded.tokenizer), loaded.encoder)


def load_pool(work: Path, count: int) -> NDArray[np.uint8]:
    """The training pictures, drawn once: uint8 (count, 64, 64, 3)."""
    path = work / f"sentence_pool_{count}.npy"
    if not path.exists():
        half = path.with_suffix(".tmp.npy")
        np.save(half, np.stack([picture(i) for i in range(TRAINING[0], TRAINING[0] + count)]))
        half.replace(path)
    return np.load(path)  # type: ignore[no-any-return]


def load_stage(file: Path, stage: str) -> dict[str, Any]:
    """What an earlier stage left to go on with."""
    if not file.exists():
        raise SystemExit(f"{file} is missing: run --stage {stage} first")
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def write_config(path: Path, sizes: Sizes) -> None:
    """What the tensors do not tell, and what a reader would ask."""
    config = {
        "family": "infinity",
        "patch_nums": [list(grid) for grid in sizes.schedule],
        "text_tokens": sizes.text_tokens,
        "vae": {"norm_groups": sizes.norm_groups},
        "licence": "Apache-2.0",
        "trained_by": "examples/train_text_demo.py",
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(options: argparse.Namespace, sizes: Sizes) -> None:
    """The stages that were asked for."""
    work, out, stages = options.work, options.out, options.stage or STAGES
    work.mkdir(parents=True, exist_ok=True)
    sentences = [sentence(i) for i in range(TRAINING[0], TRAINING[0] + options.pictures)]
    if "text" in stages:
        write_encoder(out / "text", sizes)
    pool = load_pool(work, options.pictures)
    vae = BSQVAE(sizes.tokenizer, len(sizes.schedule), encoder_blocks=1)
    vae_file = work / "vae.pt"
    if "tokenizer" in stages:
        train_tokenizer(vae, sizes.plan, pool, work, options.tokenizer_minutes)
        torch.save(vae.state_dict(), vae_file)
    if {"transformer", "export"} & {*stages}:
        vae.load_state_dict(load_stage(vae_file, "tokenizer"))
    var = Infinity(sizes.model, sizes.schedule)
    var.text_tokens = sizes.text_tokens  # sentences are short: of the learned text only so much is read
    if "transformer" in stages:
        reader = load_reader(out / "text", sizes)
        train_transformer(var, vae, reader, sizes.plan, pool, sentences, work, options.transformer_minutes)
    if "export" in stages:
        var.load_state_dict(load_stage(work / "transformer.pt", "transformer")["model"])
        save_weights(vae, out / "vae.safetensors")
        save_weights(var, out / "infinity.safetensors")
        write_config(out / "config.json", sizes)
        print(f"written: {out}")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished checkpoint and its encoder")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the pool and for resuming (1 GB, the pool above all)"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--pictures", type=int, default=64_000, help="size of the pool")
    parser.add_argument("--tokenizer-minutes", type=float, default=30.0)
    parser.add_argument("--transformer-minutes", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main() -> None:
    options = make_parser().parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    train(options, Sizes())


if __name__ == "__main__":
    main()
