"""Linear classifiers on frozen tokens: many side by side, each with its own learning rate, trained as if alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.model.encoder import is_vit

from .base import FrozenEncoder
from .storage import as_stored


class Heads(nn.Module):
    """K linear heads as one matrix, so that a step costs one matrix product.

    With SGD without weight decay, a loss times s is a learning rate times s. So the optimiser gets the greatest learning
    rate, and the loss of each head its share of it: every head goes exactly the way that it would go alone.

    Args:
        dim: numbers of a feature.
        classes: how many there are.
        rates: learning rate of each head.
        batch_norm: whether features are normalised by BatchNorm without weights of its own; one head only, with
            PyTorch's initial weights, as in the released HUVR (models/head.py). Otherwise the weights begin as
            N(0, 0.01), as in DINOv3 (eval/linear.py).
    """

    share: Tensor

    def __init__(self, dim: int, classes: int, rates: Sequence[float], batch_norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False) if batch_norm else nn.Identity()
        self.linear = nn.Linear(dim, len(rates) * classes)
        if not batch_norm:
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)
        self.heads, self.classes = len(rates), classes
        self.register_buffer("share", torch.tensor(rates) / max(rates), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, dim)`` to logits ``(B, K, classes)``."""
        return self.linear(self.norm(features)).unflatten(1, (self.heads, self.classes))

    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each head, ``(K,)``."""
        logits = self(features)
        labels = labels[:, None].expand(-1, self.heads)
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(0)

    def total(self, losses: Tensor) -> Tensor:
        """What to minimise at the greatest of the learning rates."""
        return (losses * self.share).sum()


class Feature:
    """What a linear classifier sees of an image: cls tokens of the last blocks, then the mean patch token of the last.

    Each token is first rounded to what storing it keeps (DINOv3, eval/linear.py: create_linear_input).

    Args:
        encoder: the frozen encoder.
        blocks: how many blocks, from the last one back, give their cls token, through the final norm.
        avgpool: whether the mean patch token belongs to it.

    Raises:
        HuvrError: for more blocks than there are, or several where a token is not one of a block.
    """

    def __init__(self, encoder: FrozenEncoder, blocks: int, avgpool: bool) -> None:
        network, config = encoder.network, encoder.config
        if blocks > 1:
            cls_token = getattr(network, "cls_token", None) if is_vit(network) else None
            if config.tokens != "standard" or config.layer is not None or cls_token is None:
                raise HuvrError(f"blocks {blocks}: only standard cls tokens of a ViT, without a layer, come from several")
            if blocks > len(network.blocks):
                raise HuvrError(f"blocks {blocks}: {config.source} has {len(network.blocks)}")
        self.encoder, self.blocks, self.avgpool = encoder, blocks, avgpool

    @property
    def dim(self) -> int:
        return (self.blocks + self.avgpool) * self.encoder.dim

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] to features ``(B, dim)``, block by block from the first of them to the last."""
        network, earlier = self.encoder.network, []
        observed = network.blocks[-self.blocks : -1] if self.blocks > 1 else ()
        handles = [block.register_forward_hook(lambda _, __, tokens: earlier.append(tokens[:, 0])) for block in observed]
        try:
            tokens = self.encoder(images)
        finally:
            for handle in handles:
                handle.remove()
        cls = [as_stored(network.norm(token.float()), self.encoder.config.stored) for token in earlier]
        return torch.cat([*cls, tokens.cls, *([tokens.patches.mean(1)] if self.avgpool else [])], 1)
