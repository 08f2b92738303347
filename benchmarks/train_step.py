"""A pretraining step as ``huvr fit`` takes it: images per second, share of the chip's rate, memory, and what the INR costs.

python benchmarks/train_step.py                                                   # ViT-B on the CPU, without a teacher
python benchmarks/train_step.py --presets tiny small base large --teacher vit_large_patch16_dinov3 --precision bf16 \
    --batch 256 --steps 20 --compile                                              # on an accelerator

With ``--teacher`` each preset is measured without and with it. FLOPs count a multiplication and an addition as two, forward and
backward for the student, forward for the teacher. The bare network is encoder and decoder alone, without INR, losses and teacher.
On an accelerator three more steps are profiled: the share of its time for each kind of kernel, and with nothing to do.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from common import RESULTS, peak_memory_mb, reset_peak_memory, write_record
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from huvr.commands.calm import calm
from huvr.data.loader import Batch, images_of
from huvr.model import HUVR, PRESETS, Tokens
from huvr.pretrain import Pretraining
from huvr.safety import SkipNonFinite
from huvr.teacher import Teacher, TeacherConfig

SIZE = 256
WARM = 3  # steps before time counts: they make the optimiser's state, and compile
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
# TFLOP/s in bf16 without sparsity, from the makers' data sheets; the first name that is part of the device's
DENSE_BF16 = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A10G": 70, "A10": 125,
    "L40S": 362, "L4": 121, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip

PROFILED = 3  # steps after those of which time counts
# Kinds of kernels by what their names hold; the first that fits.
KINDS = {
    "attention": ("sdpa", "flash", "fmha", "compute_dot_do_o", "convert_dq_to_16bits"),
    "fused by compile": ("triton",),
    "convolutions": ("conv", "wgrad", "dgrad", "nchwtonhwc", "nhwctonchw"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
}


class Same:
    """The same random bytes again and again."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        images = torch.randint(256, (batch_size, 3, SIZE, SIZE), dtype=torch.uint8)
        self.images = images.pin_memory() if torch.cuda.is_available() else images  # as the data module's are

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield {"image": self.images}


class Clock(Callback):
    """Seconds of all steps after the first ``warm``, together, and the peak of memory among them.

    With ``steps`` only so many count, and those after them are profiled.
    """

    def __init__(self, warm: int = WARM, steps: int | None = None) -> None:
        self.warm, self.last, self.seconds, self.peak_mb = warm, None if steps is None else warm + steps, 0.0, 0.0
        self.shares: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.warm:
            reset_peak_memory(module.device)
            self.start = now(module.device)
        if trainer.global_step == self.last:
            self.stop(module)
            self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profile.start()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.last is None:
            self.stop(module)
        else:
            now(module.device)
            self.profile.stop()
            self.shares = shares(self.profile)

    def stop(self, module: LightningModule) -> None:
        self.seconds, self.peak_mb = now(module.device) - self.start, peak_memory_mb(module.device)


def shares(profiled: profile) -> dict[str, float]:
    """Of the time from the first kernel to the last, by kind."""
    on_device = [each for each in profiled.events() or [] if each.device_type == DeviceType.CUDA]
    events = [each for each in on_device if "#" not in each.name]  # the others mark what the host did
    spans = sorted((each.time_range.start, each.time_range.end) for each in events)
    took = dict.fromkeys((*KINDS, "other kernels"), 0.0)
    for each in events:
        name = each.name.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other kernels")
        took[kind] += each.time_range.elapsed_us()
    idle, end = 0.0, spans[0][0]
    for start, stop in spans:
        idle, end = idle + max(0.0, start - end), max(end, stop)
    return {kind: round(time / (end - spans[0][0]), 4) for kind, time in (took | {"idle": idle}).items()}


class Bare(Pretraining):
    """Encoder and decoder alone, with a loss that needs all of both."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        decoded = self.net.expand(self.net.compress(self.net.encode(images_of(batch))))
        return decoded.sequence.float().square().mean()


def now(device: torch.device) -> float:
    """The time when the device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_teacher(name: str, folder: Path) -> TeacherConfig:
    """A teacher that knows nothing, for whom time is the same."""
    file = folder / f"{name}.safetensors"
    if not file.exists():
        save_file(timm.create_model(name).state_dict(), file)
    return TeacherConfig(name, str(file))


def measure(module: Pretraining, batch: int, steps: int, precision: str, profiled: bool = False) -> tuple[float, float, Any]:
    """Seconds of a step, the peak of memory in MB, and what the time went to where it is profiled."""
    clock = Clock(steps=steps if profiled else None)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        max_steps=WARM + steps + PROFILED * profiled, precision=PRECISIONS[precision], gradient_clip_val=0.01, devices=1,  # type: ignore[arg-type]
        callbacks=[SkipNonFinite(), clock], **off,  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        trainer.fit(module, Same(batch))
    finally:
        module.cpu()
        torch.compiler.reset()  # each size of batch is compiled for itself, as in a training of its own
        gc.collect()
        torch.cuda.empty_cache()
    return clock.seconds / steps, clock.peak_mb, clock.shares


def inr_seconds(net: HUVR, batch: int, steps: int, precision: str, device: torch.device) -> float:
    """Median of the INR stage alone, forward and backward."""
    side, width = SIZE // net.patch, net.config.decoder_width
    seconds, inr = [], net.inr.to(device)
    for _ in range(WARM + steps):
        sequence = torch.randn(batch, 1 + side * side, width, device=device, requires_grad=True)
        start = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            painted = inr(Tokens(sequence[:, 0], sequence[:, 1:], (side, side)))
        painted.float().square().mean().backward()
        seconds.append(now(device) - start)
    inr.cpu()
    return statistics.median(seconds[WARM:])


def student_flops(module: Pretraining) -> int:
    """Of an image, forward and backward."""
    net = module.net.to("meta")
    images = torch.rand(1, 3, SIZE, SIZE, device="meta")
    with FlopCounterMode(display=False) as counter:
        encoded = net.encode(images)
        decoded, taps = net.decoder(net.bottleneck.expand(net.compress(encoded)), taps=(module.decoder_tap,))
        sides = {"encoder": encoded, "decoder": taps[module.decoder_tap]}
        places = ((head, *name.split("_")) for name, head in net.distill.items())
        heads = [head(getattr(sides[side], kind)).sum() for head, side, kind in places]
        torch.stack([net.paint(decoded).sum(), *heads]).sum().backward()
    return counter.get_total_flops()


def teacher_flops(config: TeacherConfig, patch: int) -> int:
    """Of an image, forward."""
    teacher, side = Teacher(config), SIZE // patch
    size = teacher.input_size((SIZE, SIZE), (side, side))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher.network.to("meta").forward_features(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops()


def largest_batch(make: Any, guess: int, precision: str) -> int:
    """The largest batch that fits, to an eighth of it: from a guess on upwards, or downwards where that is too much."""

    def fits(number: int) -> bool:
        try:
            measure(make(), number, 1, precision)
        except torch.OutOfMemoryError:
            return False
        return True

    number = max(8, guess // 8 * 8)
    if not fits(number):
        while number > 8 and not fits(number := number * 7 // 64 * 8):
            pass
        return number
    while fits(larger := number + max(8, number // 64 * 8)):
        number = larger
    return number


def row(preset: str, teacher: TeacherConfig | None, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All figures of one preset, with that teacher or none."""
    config = replace(PRESETS[preset], modulation=args.modulation)
    teachers = [teacher] if teacher else []

    def make(kind: type[Pretraining] = Pretraining) -> Pretraining:
        torch.manual_seed(0)
        return kind(config, teachers if kind is Pretraining else (), compile=args.compile, pictures_every=0)

    module = make()
    seconds, peak, time_on = measure(module, args.batch, args.steps, args.precision, profiled=device.type == "cuda")
    figures: dict[str, Any] = {
        "images_per_second": round(args.batch / seconds, 3),
        "peak_memory_mb": round(peak),
        "parameters": sum(p.numel() for p in module.net.parameters()),
        "inr_share": round(inr_seconds(module.net, args.batch, args.steps, args.precision, device) / seconds, 4),
    }
    del module  # with its teacher, which would count as memory of what follows
    flops = {"student": student_flops(make())} | ({"teacher": teacher_flops(teacher, config.patch)} if teacher else {})
    figures["gflops_per_image"] = {name: round(count / 1e9, 2) for name, count in flops.items()}
    if device.type == "cuda":
        figures["time_on"] = time_on
        rate = next((rate for part, rate in DENSE_BF16.items() if part in torch.cuda.get_device_name()), None)
        if rate and args.precision == "bf16":
            figures["utilisation"] = round(args.batch / seconds * sum(flops.values()) / (rate * 1e12), 4)
        if not teacher:
            _, bare, _ = measure(make(Bare), args.batch, args.steps, args.precision)
            figures["memory_against_bare"] = round(peak / bare, 3)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**20
        figures["largest_batch"] = largest_batch(make, round(0.9 * args.batch * memory / peak), args.precision)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--presets", choices=PRESETS, nargs="+", default=["base"])
    parser.add_argument("--modulation", choices=("free", "released"), default="free")
    parser.add_argument("--teacher", help="a timm network; its weights are random")
    parser.add_argument("--compile", action="store_true", help="as model.compile of huvr fit")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    calm()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suffix = ("_cuda" if device.type == "cuda" else "") + ("_compiled" if args.compile else "")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        teachers = [None, random_teacher(args.teacher, Path(folder))] if args.teacher else [None]
        for preset in args.presets:
            for teacher in teachers:
                name = ", ".join([preset, *([teacher.name] if teacher else [])])
                figures[name] = row(preset, teacher, args, device)
                print(name, figures[name], flush=True)
                write_record("train_step" + suffix, f"random images, {SIZE} px", settings, figures, args.out)


if __name__ == "__main__":
    main()
