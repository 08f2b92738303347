"""Every task on real data: networks known to be good, and our own, TinToks beside PCA of the same size.

    python benchmarks/probes.py --packs FOLDER --vit FILE --huvr huvr-tiny=huvr-tiny demo=runs/demo

Each probe is a ``huvr probe`` with the shipped protocol, on fewer images or steps where ``PROBES`` says so. Its run folder
stays in ``--runs``; what is there already, of the same weights and options, is not measured again. ``huvr report`` joins them
into a page there. ``--name`` is for a record of its own, of networks that are measured later; ``tables.py`` joins them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import short, write_record

from huvr.cli import main as huvr
from huvr.records import Row, rows_of
from huvr.weights import locate

VIT = ["--model.encoder.mean=[0.5,0.5,0.5]", "--model.encoder.std=[0.5,0.5,0.5]"]
LABELLED = ["--data.resize=224", "--data.crop=224", "--data.train_images=2000", "--data.test_images=1000", "--data.workers=0"]
# Data, options, tokens of ours and of others, and how they are stored.
PROBES: dict[str, dict[str, Any]] = {
    "imagenet": {
        "data": "imagenette-160", "stored": ("fp16",), "ours": ("standard", "tintok"), "others": ("standard",),
        "options": [
            "--data.workers=0", "--data.train_images=1000", "--data.test_images=500", "--data.batch_size=50",
            "--trainer.max_epochs=2",
        ],
    },
    "knn": {
        "data": "imagenette-160", "options": LABELLED, "stored": ("fp16", "int8"),
        "ours": ("standard", "tintok", "pca32"), "others": ("standard", "pca8", "pca32"),
    },
    "logistic": {
        "data": "imagenette-160", "options": LABELLED, "stored": ("fp16", "int8"),
        "ours": ("standard", "tintok", "pca32"), "others": ("standard", "pca8", "pca32"),
    },
    "retrieval": {
        "data": "imagenette-160", "options": LABELLED, "stored": ("fp16", "int8"),
        "ours": ("standard", "tintok", "pca32"), "others": ("standard", "pca8", "pca32"),
    },
    "segmentation": {
        "data": "camvid", "options": ["--data.workers=0"], "stored": ("fp16",),
        "ours": ("standard", "tintok", "pca32"), "others": ("standard", "pca32"),
    },
    "depth": {
        "data": "nyuv2-256", "stored": ("fp16",),
        "options": [
            "--data.workers=0", "--trainer.max_steps=300", "--trainer.val_check_interval=300", "--model.mask=[18,188,16,240]",
            "--data.train_view.fixed_crop=[18,188,17,243]", "--data.train_view.crop=[160,208]",
        ],
        "ours": ("standard", "tintok", "pca32"), "others": ("standard", "pca32"),
    },
    "reconstruction": {
        "data": "imagenette-160", "options": ["--data.workers=0", "--data.size=128", "--data.test_images=200"],
        "stored": ("fp16", "int8"), "ours": ("tintok",), "others": (),
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True, help="Folder with imagenette-160, camvid and nyuv2-256.")
    parser.add_argument("--vit", help="Weights of vit_tiny_patch16_224, mean and std 0.5; without, it is not measured.")
    parser.add_argument("--huvr", nargs="+", required=True, metavar="NAME=RUN", help="Networks of ours.")
    parser.add_argument("--trunks", nargs="*", default=[], metavar="NET=FILE", help="Weights of trunks of LPIPS.")
    parser.add_argument("--tasks", nargs="+", choices=PROBES, default=[*PROBES], help="Only these.")
    parser.add_argument("--measured", action="store_true", help="Measure nothing, record what the run folders hold.")
    parser.add_argument("--runs", type=Path, default=Path("runs/probes"), help="Folder of the run folders.")
    parser.add_argument("--name", default="probes", help="Of the record.")
    options = parser.parse_args()
    known = ["--encoder=timm:vit_tiny_patch16_224", f"--model.encoder.weights={options.vit}", *VIT]
    networks = {"ViT-Ti": known} if options.vit else {}
    networks |= {name: [f"--encoder={run}"] for name, _, run in (each.partition("=") for each in options.huvr)}
    trunks = dict(each.split("=", 1) for each in options.trunks)
    lpips = [f"--model.lpips=[{', '.join(trunks)}]", f"--model.lpips_trunks={json.dumps(trunks)}"] if trunks else []
    figures = []
    for task in options.tasks:
        probe, extra = PROBES[task], lpips if task == "reconstruction" else []
        for name, encoder in networks.items():
            for tokens in probe["others" if name == "ViT-Ti" else "ours"]:
                for stored in probe["stored"]:
                    asked = [
                        f"--data.root={options.packs / probe['data']}",
                        *probe["options"],
                        *extra,
                        *encoder,
                        f"--tokens={tokens}",
                        f"--model.encoder.stored={stored}",
                    ]
                    weights = Path(options.vit) if name == "ViT-Ti" else locate(encoder[0].partition("=")[2])
                    run = options.runs / f"{task}-{name}-{tokens}-{stored}-{digest(asked, weights)}"
                    if not options.measured:
                        measure(task, asked, run)
                    elif not (run / "record.json").is_file():
                        continue
                    figures += [figure(row, name) for row in rows_of(run / "record.json")]
    if not figures:
        parser.error("--measured: the run folders hold no record of these networks, weights and options")
    data = ", ".join(sorted({PROBES[task]["data"] for task in options.tasks}))
    config = {"networks": {name: short(encoder[0].split("=", 1)[1]) for name, encoder in networks.items()}}
    write_record(options.name, data, config | {"options": {task: PROBES[task]["options"] for task in options.tasks}}, figures)
    huvr(["report", str(options.runs), "--out", str(options.runs / "report.html")])


def digest(asked: list[str], weights: Path) -> str:
    """Of options and weights: a folder of others is measured anew."""
    return hashlib.blake2b(" ".join(map(short, asked)).encode() + weights.read_bytes(), digest_size=4).hexdigest()


def figure(row: Row, name: str) -> dict[str, Any]:
    """A row for the record, whose options are told once for all."""
    told = asdict(row) | {"encoder": name if row.tokens else row.encoder}
    return {key: value for key, value in told.items() if key != "options"}


def measure(task: str, asked: list[str], run: Path) -> None:
    """One probe, unless its record is there."""
    if (run / "record.json").is_file():
        return
    cache = [f"--data.cache={run.parent / 'features'}"] if task in ("knn", "logistic", "retrieval") else []
    if status := huvr(["probe", "--task", task, *asked, *cache, "--run", str(run)]):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
