"""Time and memory of k-NN classification on known features.

python benchmarks/knn.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import resident_mb, write_record

from huvr.tasks.accuracy import Accuracy
from huvr.tasks.knn import QUERIES, ballots, neighbours

KS, TEMPERATURE, PIECE = (10, 20, 100, 200), 0.07, 8192  # of the shipped protocol, and huvr.tasks.features.PIECE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=1000)
    args = parser.parse_args()

    generator = np.random.default_rng(0)
    train, test = (generator.standard_normal((rows, args.dim)).astype(np.float16) for rows in (args.train, args.test))
    labels, truth = (torch.from_numpy(generator.integers(args.classes, size=rows)) for rows in (args.train, args.test))

    def pieces() -> list[tuple[torch.Tensor, torch.Tensor]]:
        starts = range(0, args.train, PIECE)
        return [(torch.from_numpy(train[start : start + PIECE]).float(), labels[start : start + PIECE]) for start in starts]

    start = time.perf_counter()
    accuracies = {k: Accuracy(args.classes, torch.device("cpu")) for k in KS}
    for first in range(0, args.test, QUERIES):
        queries = torch.from_numpy(test[first : first + QUERIES]).float()
        similar, votes = neighbours(queries, pieces(), max(KS))
        for k, scores in ballots(similar, votes, KS, TEMPERATURE, args.classes):
            accuracies[k].add(scores, truth[first : first + QUERIES])
    seconds = time.perf_counter() - start
    memory = round(resident_mb("VmHWM"))
    figures = {"seconds": round(seconds, 2), "peak_memory_mb": memory, "top1_k10": round(accuracies[10].top1, 2)}
    print(figures)
    write_record("knn", "random features in fp16", vars(args), figures)


if __name__ == "__main__":
    main()
