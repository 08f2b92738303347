"""Retrieval: does a search with the cls token of an image find images of its class?"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError

from .base import EncoderConfig, FrozenEncoderTask
from .features import FeatureSplit

Index = Literal["exact", "faiss"]
SIMILARITIES = 2**23  # at once, beside which ranking them takes about ten times their memory


class Retrieval(FrozenEncoderTask):
    """Retrieval by the cosine of cls tokens: recall@k and mean average precision.

    recall@k is the share of queries with an image of their class among the first k, mAP the mean over queries of the
    average precision of the whole ranking. Queries are the test split, the gallery is the training split. The keys of the
    gallery, as they come back from where they were stored, are read from the disk for a few queries at a time; FAISS alone
    keeps them in memory.

    Args:
        encoder: the frozen encoder.
        k: ranks to measure recall at.
        leave_one_out: search the test split itself for the others of each image's class; images that are the only ones of
            theirs are no queries.
        index: "exact" ranks the whole gallery in torch; "faiss" has FAISS find the first ``max(k)`` in its flat index, just
            as exact, and leaves out mAP. Without FAISS, "exact" takes its place.
    """

    headline = "map"

    def __init__(
        self, encoder: EncoderConfig, k: tuple[int, ...] = (1, 5, 10), leave_one_out: bool = False, index: Index = "exact"
    ) -> None:
        if not k or min(k) < 1:
            raise HuvrError(f"k {list(k)}: expected ranks from 1 on")
        if index not in get_args(Index):
            raise HuvrError(f"index {index!r}: choose one of {', '.join(get_args(Index))}")
        super().__init__(encoder)
        self.k, self.leave_one_out, self.learns = k, leave_one_out, not leave_one_out
        if index == "faiss" and find_spec("faiss") is None:
            warnings.warn("FAISS is not installed (pip install 'huvr[faiss]'): the search is done in torch", stacklevel=2)
            index = "exact"
        self.index = index

    def test_step(self, batch: FeatureSplit, index: int) -> None:
        gallery = batch if self.leave_one_out else self.trainer.datamodule.train  # type: ignore[attr-defined]
        if max(self.k) > len(gallery) - self.leave_one_out:
            raise HuvrError(f"k {max(self.k)}: there are only {len(gallery) - self.leave_one_out} images to be found")
        labels = torch.from_numpy(gallery.entry.labels).to(self.device)
        index_of_keys = flat_index(gallery) if self.index == "faiss" else None
        images_of_class = labels.bincount(minlength=len(gallery.classes))
        totals: dict[str, float] = defaultdict(float)
        queries = start = 0
        for features, classes in batch.pieces(max(1, SIMILARITIES // len(gallery))):
            features = F.normalize(features, dim=1)
            own = torch.arange(start, start + len(features), device=labels.device) if self.leave_one_out else None
            asked = images_of_class[classes] > self.leave_one_out
            if index_of_keys is None:
                similar, hits = ranking(features, classes, unit_keys(gallery), labels, own)
                totals["map"] += average_precision(similar[asked], hits[asked]).double().sum().item()
            else:
                hits = first_found(index_of_keys, features, classes, labels, own, max(self.k))
            for k in self.k:
                totals[f"recall@{k}"] += hits[asked, :k].any(1).sum().item()
            queries += int(asked.sum())
            start += len(features)
        if not queries:
            raise HuvrError("leave_one_out: no class has two images, so there is nothing to be found")
        self.details |= {"index": self.index, "queries": queries, "gallery": len(gallery)}
        self.log_dict({name: 100 * total / queries for name, total in totals.items()}, batch_size=len(batch))


def unit_keys(split: FeatureSplit) -> Iterator[Tensor]:
    """The features of a split at length one, ``(n, D)`` at a time."""
    return (F.normalize(features, dim=1) for features, _ in split.pieces())


def ranking(
    queries: Tensor, classes: Tensor, keys: Iterable[Tensor], labels: Tensor, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The whole gallery by similarity to each query.

    Args:
        queries, keys: ``(Q, D)``, and ``(n, D)`` piece by piece, of length one.
        classes, labels: those of the queries ``(Q,)`` and of the gallery ``(N,)``.
        own: the place of each query in the gallery, which comes last and is no hit; None where they are none of it.

    Returns:
        Similarities in falling order, and whether the image there is of the query's class, ``(Q, N)`` both.
    """
    similar, matches = queries.new_empty(len(queries), len(labels)), classes[:, None] == labels
    start = 0
    for piece in keys:  # not a list of parts to be joined: between them, what was freed of pieces would lie in small holes
        similar[:, start : start + len(piece)] = queries @ piece.T
        start += len(piece)
    if own is not None:
        similar.scatter_(1, own[:, None], -torch.inf)
        matches.scatter_(1, own[:, None], False)
    similar, order = similar.sort(dim=1, descending=True, stable=True)
    return similar, matches.gather(1, order)


def average_precision(similar: Tensor, hits: Tensor) -> Tensor:
    """Of whole rankings as :func:`ranking` gives them, each with a hit or more: ``(Q,)``.

    The mean over hits of the share of hits among all that are ranked as high or higher. Images of equal similarity are
    taken together, as in scikit-learn, so their order does not count.
    """
    ranked = torch.searchsorted(-similar, -similar, right=True)
    precision = hits.cumsum(1).gather(1, ranked - 1) / ranked
    return (precision * hits).sum(1) / hits.sum(1)


def flat_index(gallery: FeatureSplit) -> Any:
    """FAISS's exact index of dot products."""
    import faiss

    index = faiss.IndexFlatIP(gallery.dim)
    for keys in unit_keys(gallery):
        index.add(keys.cpu().numpy())
    return index


def first_found(index: Any, queries: Tensor, classes: Tensor, labels: Tensor, own: Tensor | None, count: int) -> Tensor:
    """Whether the first ``count`` images that FAISS finds are of the query's class, ``(Q, count)``; see :func:`ranking`."""
    _, found = index.search(queries.cpu().numpy(), count + (own is not None))
    order = torch.from_numpy(found).to(labels.device)
    if own is not None:  # found first, as a rule, but images that are alike come in any order
        order = order.gather(1, (order == own[:, None]).int().argsort(dim=1, stable=True))[:, :count]
    return labels[order] == classes[:, None]
