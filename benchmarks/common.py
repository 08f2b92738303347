"""What every benchmark shares: photographs, and the record it leaves."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from huvr.files import whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def hardware() -> str:
    """The processor, or the accelerator where there is one, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"CPU: {model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"


def commit() -> str:
    """The commit the figures were measured at, marked when the tree had changes other than of records."""
    try:
        told = [
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short=12", "HEAD"], ["diff", "HEAD", "--name-only", "--", ":!benchmarks/results"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told[0] + ("-dirty" if told[1] else "")


COMMIT = commit()  # at the start: what is edited while a benchmark runs has no part in it


def parquet(argument: str) -> str:
    """An argument of a command that names a Parquet file."""
    if not Path(argument).is_file() or not pq.read_schema(argument).names:
        raise argparse.ArgumentTypeError(f"{argument} is no Parquet file")
    return argument


def short(argument: str) -> str:
    """A path, perhaps with ``NAME=`` before it, without the folders that only exist here: its last two parts."""
    name, equals, path = argument.rpartition("=")
    if equals:
        return name + equals + short(path)
    return "/".join(Path(argument).parts[-2:]) if Path(argument).exists() else argument


def write_record(name: str, data: str, config: dict[str, Any], figures: Any, folder: Path = RESULTS) -> None:
    """Write ``<folder>/<name>.json`` whole or not at all."""
    record = {
        "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *map(short, sys.argv[1:])]),
        "commit": COMMIT,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "data": data,
        "config": config,
        "figures": figures,
    }
    target = folder / f"{name}.json"
    with whole(target) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {short(str(target))}")


def resident_mb(field: str) -> float:
    """Resident memory of this process, now ("VmRSS") or at its peak ("VmHWM"), in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def reset_peak_memory(device: torch.device) -> None:
    """Peaks count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed, but kept for later, belongs to what was measured before
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak of the accelerator's memory, or of this process's on a CPU, in MB."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident_mb("VmHWM")


def random_crops(pictures: list[Tensor], count: int, size: int, rng: np.random.Generator) -> Tensor:
    """``count`` flipped-or-not square crops of uint8 ``(3, H, W)`` pictures, as floats in [0, 1]."""
    crops = []
    for index in rng.integers(len(pictures), size=count):
        _, height, width = pictures[index].shape
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        crop = pictures[index][:, top : top + size, left : left + size]
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops).float() / 255
