"""Trains the demo model: a multi-scale VQVAE, then a class-conditional VAR on its tokens, on drawn pictures.

    python examples/train_demo.py --out checkpoints/demo --work /somewhere/outside     # about two hours on two cores
    torchrun --nproc-per-node 2 examples/train_demo.py ... --threads 1 --stage var     # where other work runs beside it

Stages may be run one by one (``--stage tokenizer|var|export``). Every stage resumes where it was interrupted
(Ctrl-C saves), and prints its losses and the time that is left. The result has the published key layout:
``vae.safetensors``, ``var.safetensors`` and a ``config.json`` with the numbers that tensors do not tell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from demo_tokenizer import train_tokenizer
from demo_training import join_workers, meet, rank, save_weights
from demo_transformer import train_transformer
from demo_world import CLASS_NAMES, TRAINING, pictures
from numpy.typing import NDArray

from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.types import Model, Tokenizer

PATCH_NUMS = (1, 2, 3, 4, 6, 8, 12, 16)
SCHEDULE = tuple((side, side) for side in PATCH_NUMS)
TOKENIZER = Tokenizer(
    channels=32, multipliers=(1, 1, 2), res_blocks=1, code_channels=16, vocabulary=512, stride=4, norm_groups=8
)
MODEL = Model(
    family="var",
    depth=7,
    width=192,
    heads=3,
    head_dim=64,
    ffn_width=768,
    vocabulary=TOKENIZER.vocabulary,
    code_channels=TOKENIZER.code_channels,
    classes=len(CLASS_NAMES),
    shared_adaln=True,
)
STAGES = ("tokenizer", "var", "export")


def load_pool(work: Path, count: int) -> NDArray[np.uint8]:
    """The training pictures, drawn once: uint8 (count, 64, 64, 3)."""
    path = work / "pool.npy"
    if not path.exists():
        np.save(path, pictures(TRAINING[0], count))
    return np.load(path)[:count]  # type: ignore[no-any-return]


def write_config(path: Path) -> None:
    """What the tensors do not tell, and what a reader would ask."""
    config = {
        "family": "var",
        "patch_nums": PATCH_NUMS,
        "num_classes": MODEL.classes,
        "class_names": CLASS_NAMES,
        "depth": MODEL.depth,
        "width": MODEL.width,
        "heads": MODEL.heads,
        "ffn_ratio": MODEL.ffn_width / MODEL.width,
        "shared_aln": MODEL.shared_adaln,
        "attn_l2_norm": MODEL.qk_norm,
        "vae": {
            "ch": TOKENIZER.channels,
            "ch_mult": TOKENIZER.multipliers,
            "num_res_blocks_encoder": 1,
            "num_res_blocks_decoder": TOKENIZER.res_blocks,
            "z_channels": TOKENIZER.code_channels,
            "vocab_size": TOKENIZER.vocabulary,
            "stride": TOKENIZER.stride,
            "norm_groups": TOKENIZER.norm_groups,
        },
        "licence": "Apache-2.0",
        "trained_by": "examples/train_demo.py",
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--work", type=Path, required=True, help="folder for the pool and for resuming (1 GB)")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--pictures", type=int, default=64_000, help="size of the pool")
    parser.add_argument("--tokenizer-minutes", type=float, default=18.0)
    parser.add_argument("--var-minutes", type=float, default=110.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    join_workers()
    options.work.mkdir(parents=True, exist_ok=True)
    stages = options.stage or STAGES
    vae_file = options.work / "vae.pt"

    pool = load_pool(options.work, options.pictures)
    vae = VQVAE(TOKENIZER, len(SCHEDULE), encoder_blocks=1)
    if "tokenizer" in stages:
        train_tokenizer(vae, SCHEDULE, pool, options.work, options.tokenizer_minutes)
        if rank() == 0:
            torch.save(vae.state_dict(), vae_file)
        meet()
    vae.load_state_dict(torch.load(vae_file, weights_only=True))
    var = VAR(MODEL, SCHEDULE)
    if "var" in stages:
        train_transformer(var, vae, pool, options.work, options.var_minutes)
    if "export" in stages:
        var.load_state_dict(torch.load(options.work / "transformer.pt", weights_only=True)["model"])
        save_weights(vae, options.out / "vae.safetensors")
        save_weights(var, options.out / "var.safetensors")
        write_config(options.out / "config.json")
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
