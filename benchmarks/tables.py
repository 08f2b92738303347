"""Writes the tables of the README, docs/results.md and the model card from ``benchmarks/results``; nobody types a figure there.

    python benchmarks/tables.py

A block begins with a line ``<!-- table: NAME -->`` and ends with ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial, reduce
from operator import add, or_
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "huvr" / "shipped" / "huvr-tiny" / "README.md")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return [
        "| " + " | ".join(f"{cell + 0.0:.2f}" if isinstance(cell, float) else str(cell) for cell in line) + " |" for line in lines
    ]


def reconstruction(figures: dict[str, Any], network: str = "the demo's HUVR") -> list[str]:
    names = {
        "huvr": network,
        "patch_pca": "per-patch PCA, as many numbers a patch",
        "flat_patch": "each patch in its mean colour",
    }
    rows = [[names[key], row["psnr"], f"{row['ssim']:.3f}"] for key, row in figures["mean"].items()]
    return table([f"{figures['held_out']} held-out photographs", "PSNR, dB", "SSIM"], rows)


def feature_memory(figures: list[dict[str, Any]]) -> list[str]:
    rows = [
        [row["task"], f"{row['images']:,}", f"{row['file_mb']} MB", f"{row['anonymous_mb']} MB", f"{row['seconds']:.0f} s"]
        for row in figures
    ]
    return table(["task", "images to learn from", "their features", "memory", "time"], rows)


def allocator(figures: list[dict[str, Any]]) -> list[str]:
    rows = [
        [f"{row['work']}, {row['batch']} images", f"{row['as_glibc']['seconds']:.2f} s", f"{row['kept']['seconds']:.2f} s",
         f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}", f"{row['as_glibc']['peak_mb'] / 1024:.1f} GB",
         f"{row['kept']['peak_mb'] / 1024:.1f} GB"]
        for row in figures
    ]  # fmt: skip
    return table(["huvr-tiny on a CPU", "memory given back", "kept", "times as fast", "peak, given back", "peak, kept"], rows)


def modulation(figures: dict[str, Any]) -> list[str]:
    rows = [
        [row["candidate"], row["psnr"], row["lost_if_swapped"], row["lost_if_zeroed"], row["time_against_released"]]
        for row in figures["candidates"]
    ]
    header = ["modulation", "PSNR, dB", "lost when global TinToks are swapped", "… zeroed", "time of the INR, released = 1"]
    return table(header, [*rows, ["per-patch PCA, for scale", figures["patch_pca_psnr"], "", "", ""]])


def sizes(figures: dict[str, Any]) -> list[str]:
    rows = [[name, *(row["sizes"][key] for key in ("whole", "tiled", "most_lost_by_whole"))] for name, row in figures.items()]
    return table(["trained with", "whole 768×512, dB", "in tiles of 64, dB", "most lost by whole, dB"], rows)


def scales(figures: dict[str, Any]) -> list[str]:
    rows = [
        [name, scale, *(row["scales"][scale][key] for key in ("inr", "bicubic_of_1x", "bicubic_of_input"))]
        for name, row in figures.items()
        for scale in row["scales"]
    ]
    return table(["trained with", "scale", "INR, dB", "bicubic of its 1×, dB", "bicubic of the input, dB"], rows)


def inr(figures: dict[str, Any]) -> list[str]:
    rows = [
        [
            form, f"{row['times_faster']:.1f} times", f"{row['times_less_memory']:.1f} times",
            f"{row['difference_fp32']['outputs']:.0e}", f"{row['difference_fp64']['gradients']:.0e}",
        ]
        for form, row in figures.items()
    ]  # fmt: skip
    return table(["modulation", "faster", "less memory", "outputs differ by (fp32)", "gradients differ by (fp64)"], rows)


def train_step(figures: dict[str, Any]) -> list[str]:
    rows = [
        [name, row["images_per_second"], f"{row['gflops_per_image']['student']:.0f}", row["gflops_per_image"].get("teacher", ""),
         f"{row['inr_share']:.0%}", f"{row['peak_memory_mb'] / 1024:.1f} GB"]
        for name, row in figures.items()
    ]  # fmt: skip
    header = ["preset, teacher", "images/s", "GFLOPs an image, student", "… teacher", "share of the INR", "peak memory"]
    return table(header, rows)


def train_step_gpu(figures: dict[str, Any]) -> list[str]:
    rows = []
    for name, row in figures.items():
        rate = f"{row['utilisation']:.0%}" if "utilisation" in row else ""  # of bf16 on a chip whose rate is known
        share, memory = f"{row['inr_share']:.1%}", f"{row['peak_memory_mb'] / 1024:.1f} GB"
        rows.append([name, f"{row['images_per_second']:.0f}", rate, share, memory])
    header = ["preset, teacher", "images/s", "of the chip's bf16 rate", "share of the INR", "memory"]
    for key, title in {"memory_against_bare": "… bare network = 1", "largest_batch": "largest batch"}.items():
        if any(key in row for row in figures.values()):
            header.append(title)
            for line, row in zip(rows, figures.values(), strict=True):
                line.append(row.get(key, ""))  # the bare network has no teacher
    return table(header, rows)


def train_step_time(figures: dict[str, Any]) -> list[str]:
    rows = [[name, *(f"{share:.0%}" for share in row["time_on"].values())] for name, row in figures.items()]
    return table(["preset, teacher", *next(iter(figures.values()))["time_on"]], rows)


def input_rates(figures: dict[str, dict[str, float]]) -> list[str]:
    workers = list(next(iter(figures.values())))
    titles = [f"{number} worker{'s' * (number != '1')}" for number in workers]
    return table(["images/s from", *titles], [[name, *(f"{rate:.0f}" for rate in row.values())] for name, row in figures.items()])


def teacher(figures: dict[str, Any]) -> list[str]:
    rows = [
        [echoes, f"{row['seconds_of_a_step']:.2f}", row["times_faster"], row["same_steps"]["psnr"], row["same_time"]["psnr"]]
        for echoes, row in figures.items()
    ]
    return table(["steps per look", "seconds a step", "times faster", "PSNR after the same steps, dB", "… the same time"], rows)


def harness(figures: dict[str, Any]) -> list[str]:
    sample = "photographs of all classes"
    rows = [
        [name, row[sample]["top1"], row[sample]["timm_top1"], row[sample]["elsewhere"], row["ImageNette"]["top1"]]
        for name, row in figures.items()
    ]
    header = ["its own classifier, top-1 of 1000", "900 photographs", "… by timm's transform", "elsewhere", "ImageNette, 160 px"]
    return table(header, rows)


def probes(figures: list[dict[str, Any]]) -> list[str]:
    """One line for an encoder and its tokens, one column for the headline of each task."""
    tasks = {row["task"]: row["headline"] for row in figures}
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in figures:
        key = (row["encoder"], row["tokens"], row["stored"])
        lines.setdefault(key, {})[row["task"]] = row["metrics"].get(row["headline"])
    order = ["standard", "tintok", "pca8", "pca32", "fp16", "int8", *dict.fromkeys(encoder for encoder, _, _ in lines), ""]
    shown = [
        [encoder or "", tokens, stored, *("" if line.get(task) is None else line[task] for task in tasks)]
        for (encoder, tokens, stored), line in sorted(lines.items(), key=lambda each: [order.index(part) for part in each[0]])
        if tokens
    ]
    return table(["encoder", "tokens", "stored", *(f"{task}, {headline}" for task, headline in tasks.items())], shown)


def probes_short(figures: list[dict[str, Any]]) -> list[str]:
    """The same of huvr-tiny and of the encoder known to be good, as their tokens are stored by default."""
    return probes([row for row in figures if row["encoder"] != "demo" and row["stored"] == "fp16" and row["tokens"] != "pca8"])


def drawings(figures: list[dict[str, Any]]) -> list[str]:
    measured = [row for row in figures if row["task"] == "reconstruction"]
    names = [name for name in measured[0]["metrics"] if name.startswith("lpips")]
    rows = [
        [row["encoder"] if row["tokens"] else row["encoder"].upper(), row["stored"], f"{row['bytes_per_image']:,.0f}",
         row["metrics"]["psnr"], *(f"{row['metrics'][name]:.3f}" for name in ("ssim", *names))]
        for row in measured
    ]  # fmt: skip
    return table(["format", "stored", "bytes / image", "PSNR, dB", "SSIM", *(name.replace("_", " ") for name in names)], rows)


def hypernets(figures: dict[str, Any]) -> list[str]:
    rows = [
        [name, row["psnr"], f"{row['numbers']:,}", row["rivals"].get("patch_pca", ""), row["rivals"].get("jpeg", ""),
         f"{row['parameters'] / 1e6:.1f} M", row["images_per_second"], f"{row['peak_memory_mb']} MB", f"{row['lr']:g}"]
        for name, row in figures.items()
    ]  # fmt: skip
    header = [
        "network",
        "PSNR, dB",
        "numbers an image",
        "PCA of the same size, dB",
        "JPEG, dB",
        "parameters",
        "images/s",
        "memory",
        "learning rate",
    ]
    return table(header, rows)


def minr(figures: dict[str, Any]) -> list[str]:
    """Of hidden pixels, each kind of mask; the last column is the same of other data."""
    kinds = list(figures["MAE"]["own"])
    rows = [
        [name, *(row["own"][kind]["hidden"] for kind in kinds), row["other"]["random 0.75"]["hidden"]]
        for name, row in figures.items()
    ]
    return table(["PSNR of hidden pixels, dB", *kinds, "other data, random 0.75"], rows)


def hypernet_configs(figures: dict[str, Any]) -> list[str]:
    rows = [
        [f"`{name}.yaml`", f"{row['parameters'] / 1e6:.1f} M", row["before"], row["after"], row["seconds_a_step"]]
        for name, row in figures.items()
    ]
    return table(["config", "parameters", "PSNR before, dB", "… after", "seconds a step"], rows)


def ablations(figures: list[dict[str, Any]]) -> list[str]:
    """Means over the seeds, with the distance of the farthest two behind ±."""

    def cell(row: dict[str, Any], key: str) -> str:
        return f"{row[key]:.2f} ± {row[f'{key}_spread']:.2f}" if key in row else ""

    rows = [
        [row["group"], row["variant"], f"{row['numbers']:,}", *(cell(row, key) for key in ("psnr", "knn", "knn_tintok"))]
        for row in figures
    ]
    return table(["", "variant", "numbers an image", "PSNR, dB", "k-NN, tokens", "k-NN, TinToks"], rows)


def where_lost(figures: dict[str, Any]) -> list[str]:
    """Networks, the best first, on squares that they learned from and on held-out ones; then on the few of the search."""
    columns = list(next(iter(figures.values())))
    best_first = sorted(figures.items(), key=lambda item: (len(item[1]) > 1, item[1]["as it is"]["all"]), reverse=True)
    rows = [
        [name, row["as it is"]["learned"], row["as it is"]["all"], *(row[key]["few"] if key in row else "" for key in columns)]
        for name, row in best_first
    ]
    header = ["squares, PSNR in dB", "as it is, learned from", "as it is, held out", *(f"{key}, some" for key in columns)]
    return table(header, rows)


def refine(figures: dict[str, dict[str, float]]) -> list[str]:
    rows = [
        [name, row["psnr"], f"{row['ssim']:.3f}", *(row.get(key, "") for key in ("psnr_int8", "psnr_halved", "seconds"))]
        for name, row in figures.items()
    ]
    return table(["held-out photographs", "PSNR, dB", "SSIM", "stored in int8", "halved, drawn × 2", "s a photograph"], rows)


def lift(figures: dict[str, Any]) -> list[str]:
    rows = [
        [row["kind"], row["psnr"], row["steps"], f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e6:.1f} M"]
        for row in figures["images"]
    ]
    return table(["network", "PSNR, dB", "steps", "parameters", "multiply-adds an image"], rows)


def generation(figures: list[dict[str, Any]]) -> list[str]:
    """The first run on its way, all runs at their end, and what they are beside."""
    end = figures[0]["points"][-1]
    measures = [name for name in end if name not in ("images_seen", "images_per_second", "peak_memory_mb")]
    network = next(name for name in measures if name.startswith("precision_")).removeprefix("precision_")
    titles = [name.removesuffix(f"_{network}").replace("frechet", "Fréchet distance").replace("_", " ") for name in measures]
    rows = [
        [row["run"] if point is row["points"][-1] else f"{row['run']}, on the way", f"{point['images_seen']:,}",
         *(point[name] for name in measures)]
        for row in figures for point in row["points"]
    ]  # fmt: skip
    beside = {
        kind if kind.startswith("held-out") else f"{kind}, as of {row['run']}": found
        for row in figures for kind, found in row["beside"].items()
    }  # fmt: skip
    rows += [[kind, "", *(found[name] for name in measures)] for kind, found in beside.items()]
    return table([f"pictures, as {network} sees them", "images seen", *titles], rows)


def generation_speed(figures: list[dict[str, Any]]) -> list[str]:
    """Of training and of sampling; the runs that only draw anew have none of their own."""
    rows = [
        [row["run"], row["points"][-1]["images_per_second"], f"{row['points'][-1]['peak_memory_mb'] / 1024:.1f} GB",
         row["samples_per_second"], f"{row['sampling_peak_memory_mb'] / 1024:.1f} GB"]
        for row in figures if "decoder" not in row["run"]
    ]  # fmt: skip
    return table(["generator", "training, images/s", "peak memory", "sampling, images/s", "peak memory"], rows)


def tiles(figures: list[dict[str, Any]]) -> list[str]:
    ways = [name for name, value in figures[0].items() if isinstance(value, dict)]
    rows = [
        [
            row["photograph"],
            f"{row['height']}×{row['width']}",
            *(f"{row[way]['psnr']:.2f}, {row[way]['seconds']:.1f} s" for way in ways),
        ]
        for row in figures
    ]
    return table(["photograph", "size", *(f"in tiles of {way}" if way != "whole" else "whole, PSNR in dB" for way in ways)], rows)


# block → (record, or several whose figures are one list; what makes its table)
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "reconstruction": ("reconstruction", reconstruction),
    "shipped": ("shipped", partial(reconstruction, network="huvr-tiny")),
    "feature_memory": ("feature_memory", feature_memory),
    "modulation_adamw": ("modulation_adamw", modulation),
    "modulation_muon": ("modulation_muon", modulation),
    "sizes": ("any_size", sizes),
    "scales": ("any_size", scales),
    "tiles": ("tiles", tiles),
    "inr": ("inr", inr),
    "train_step": ("train_step", train_step),
    "train_step_cuda": ("train_step_cuda", train_step_gpu),
    "train_step_cuda_compiled": ("train_step_cuda_compiled", train_step_gpu),
    "train_step_time": ("train_step_cuda_compiled", train_step_time),
    "allocator": ("allocator", allocator),
    "input": ("input", input_rates),
    "teacher": ("teacher", teacher),
    "harness": ("harness", harness),
    "probes": ("probes probes_shipped", probes),
    "probes_short": ("probes probes_shipped", probes_short),
    "drawings": ("probes probes_shipped", drawings),
    "hypernets": ("hypernets", hypernets),
    "hypernets_64": ("hypernets_64", hypernets),
    "hypernets_cuda": ("hypernets_cuda", hypernets),
    "minr": ("minr", minr),
    "where_lost": ("where_lost_parts where_lost", where_lost),
    "refine": ("refine", refine),
    "hypernet_configs": ("hypernet_configs", hypernet_configs),
    "ablations": ("ablations", ablations),
    "lift": ("lift", lift),
    "generation_cifar10": ("generation_cifar10", generation),
    "generation_cifar10_speed": ("generation_cifar10", generation_speed),
    "generation_cifar10_small": ("generation_cifar10_small", generation),
    "generation_cifar10_small_speed": ("generation_cifar10_small", generation_speed),
    "generation_imagenette": ("generation_imagenette", generation),
    "generation_imagenette_speed": ("generation_imagenette", generation_speed),
}


def block(name: str) -> str:
    """The lines of one block: the table, and where its figures come from; of two records of a name, the last counts."""
    files, maker = TABLES[name]
    records = [json.loads((RESULTS / f"{file}.json").read_text()) for file in files.split()]
    figures = reduce(or_ if isinstance(records[0]["figures"], dict) else add, [each["figures"] for each in records])
    sources = [f"`{each['command']}`. {each['hardware']}. Data: {each['data']}. {each['date']}." for each in records]
    return "\n".join([*maker(figures), "", "\n\n".join(sources), ""])


def written(text: str) -> str:
    """A page with every block made anew."""
    return BLOCK.sub(lambda match: match[1] + block(match[2]) + match[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text()))
