"""Every shipped config of a hyper-network, for a few steps on real images: PSNR of held-out ones before and after.

    python benchmarks/hypernet_configs.py --data imagenette-160 --steps 60

Networks, losses, masks, optimisers and learning rates are those of the configs. Other are the length, the batch, the size of the
images (144 pixels; 156, twelve masking cells, for MINR; 64 for LIFT; volumes of 32³), and that nothing is averaged over steps.
The solids of ``lift_voxel.yaml`` are made by code.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, short, write_record
from trainings import Finished  # which also keeps Lightning quiet

from huvr.commands.training import TrainingCLI

SHOWN = 32  # held-out images that are measured
CONFIGS: dict[str, dict[str, Any]] = {
    "transinr": {"data.size": 144, "model.net.tokenizer.image_size": 144},
    "ginr": {"data.size": 144, "model.net.tokenizer.image_size": 144},
    "anr": {"data.size": 144, "model.net.tokenizer.image_size": 144},
    "minr_transinr": {"data.size": 156, "model.net.tokenizer.image_size": 156},
    "minr_ginr": {"data.size": 156, "model.net.tokenizer.image_size": 156},
    "minr_mae": {"data.size": 156},
    "lift_image": {"data.size": 64},
    "relift_image": {"data.size": 64},
    "lift_voxel": {"data.side": 32, "data.train": 512, "data.validation": SHOWN},
}


def arguments(name: str, options: argparse.Namespace) -> list[str]:
    """Those of ``huvr fit``."""
    changes = CONFIGS[name] | {"data.batch_size": options.batch, "model.pictures_every": 0}
    if name != "lift_voxel":
        changes |= {"data.root": options.data, "data.workers": 0}
    changes |= {
        "trainer.max_steps": options.steps, "trainer.max_epochs": -1, "trainer.limit_val_batches": -(-SHOWN // options.batch),
        "trainer.accumulate_grad_batches": 1, "trainer.callbacks": "null", "trainer.logger": "false",
        "trainer.check_val_every_n_epoch": 1000, "trainer.devices": 1, "trainer.inference_mode": "false",
    }  # fmt: skip
    changes |= {f"trainer.enable_{part}": "false" for part in ("checkpointing", "progress_bar", "model_summary")}
    return ["--config", f"hypernets/{name}.yaml", *(f"--{key}={value}" for key, value in changes.items())]


def trained(name: str, options: argparse.Namespace) -> dict[str, float]:
    """PSNR before and after, and what it took."""
    cli = TrainingCLI("fit", arguments(name, options))

    def measured() -> float:
        (found,) = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        return round(found["val/psnr"], 3)

    before, start = measured(), time.perf_counter()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    seconds = (time.perf_counter() - start) / options.steps
    parameters = sum(p.numel() for p in cli.model.parameters() if p.requires_grad)
    return {"parameters": parameters, "before": before, "after": measured(), "seconds_a_step": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images of 160 pixels or more with a held-out split, as in data.root")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=[*CONFIGS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    if {*options.only} != {*CONFIGS} and options.out == RESULTS:
        parser.error("--only: a part is no record of all of them; give it another --out")
    torch.set_num_threads(options.threads)
    kept = {"data": short(options.data), "steps": options.steps, "batch": options.batch, "threads": options.threads}
    finished = Finished(options.out, "hypernet_configs", kept)
    figures = {name: finished(name, lambda name=name: trained(name, options)) for name in options.only}
    write_record("hypernet_configs", short(options.data), kept | {"begun_at": finished.begun_at}, figures, options.out)
    finished.close()


if __name__ == "__main__":
    main()
