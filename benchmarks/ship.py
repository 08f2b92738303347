"""Puts a trained network into the package, in fp16 and without what only distillation needs, and measures it there.

    python benchmarks/ship.py --run runs/tiny --data runs/tiny-data

Of several runs, which must have gone on from the same weights, it is the mean of their weights. The data are those it was
trained on, with a held-out split; ``tables.py`` puts the figures into the model card.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common import short, write_record
from reconstruction import measure
from torch import nn

from huvr import load
from huvr.data import Images
from huvr.weights import SHIPPED

FOLDER = Path(__file__).parents[1] / "huvr" / "shipped" / SHIPPED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, nargs="+", help="of huvr fit")
    parser.add_argument("--data", required=True, help="what it was trained on, as in data.root")
    args = parser.parse_args()
    models, data = [load(run) for run in args.run], Images(args.data)
    data.setup()  # before the network that ships is replaced
    model = models[0]
    model.config, model.distill = replace(model.config, distill_dims={}), nn.ModuleDict()
    states = [each.state_dict() for each in models]
    model.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in model.state_dict()})
    model.half().save(FOLDER)

    shipped = load()
    means, _ = measure(shipped, data)
    ends = [torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True, mmap=True) for run in args.run]
    config = {
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "bytes": (FOLDER / "model.safetensors").stat().st_size,
        "tintok_dim": shipped.config.tintok_dim,
        "steps": [end["global_step"] for end in ends],
    }
    write_record("shipped", short(args.data), config, {"mean": means, "held_out": len(data.val_rows)})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
