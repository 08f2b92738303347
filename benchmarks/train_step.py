"""Images per second and peak memory of a pretraining step of one preset, pixel loss, without a teacher.

python benchmarks/train_step.py                                  # ViT-B on the CPU
python benchmarks/train_step.py --batch 64 --precision bf16      # on an accelerator
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import peak_memory_mb, reset_peak_memory, write_record

from huvr.model import HUVR, PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    figures = {}
    for modulation in ("released", "free"):
        model = HUVR.preset(args.preset, modulation=modulation).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.01)
        images = torch.rand(args.batch, 3, 256, 256, device=device)
        seconds: list[float] = []
        for step in range(args.steps + 1):
            if step == 1:  # the first one makes the optimiser's state
                reset_peak_memory(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
                pictures = model.reconstruct(images)
            (2 * (pictures.float() - images)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        figures[modulation] = {
            "images_per_second": round(args.batch / statistics.median(seconds[1:]), 3),
            "peak_memory_mb": round(peak_memory_mb(device)),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        print(modulation, figures[modulation], flush=True)
        del model, optimizer
    write_record("train_step" + ("_cuda" if device.type == "cuda" else ""), "random images, 256 px", vars(args), figures)


if __name__ == "__main__":
    main()
