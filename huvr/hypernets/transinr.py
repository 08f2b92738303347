"""TransINR (Chen & Wang, arXiv 2208.02801): a transformer modulates every layer of the INR."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.hypernets.coordinate_mlp import INRConfig, check_layers
from huvr.hypernets.tokenizer import TokenizerConfig
from huvr.hypernets.transformer import TransformerConfig
from huvr.hypernets.weight_tokens import WeightTokenINR


class TransINR(WeightTokenINR):
    """Shared base weights, each column times what one weight token says, and then of length one.

    The columns of a layer share ``groups`` weight tokens: column o belongs to token o mod groups (trans-inr, trans_inr.py).

    Args:
        tokenizer, transformer, inr: shapes.
        groups: weight tokens per layer, at most one a column.
        modulated: layers with weight tokens, counted from 0; None is all. The others are the same for all images.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008 (frozen)
        transformer: TransformerConfig = TransformerConfig(),  # noqa: B008
        inr: INRConfig = INRConfig(),  # noqa: B008
        groups: int = 64,
        modulated: tuple[int, ...] | None = None,
    ) -> None:
        layers = check_layers(range(inr.depth) if modulated is None else modulated, inr)
        if groups < 1:
            raise HuvrError(f"groups {groups}: expected 1 or more")
        columns = {layer: min(groups, inr.shapes[layer][1]) for layer in layers}
        for layer, count in columns.items():
            if inr.shapes[layer][1] % count:
                raise HuvrError(f"groups {groups}: does not divide the {inr.shapes[layer][1]} outputs of layer {layer}")
        super().__init__(tokenizer, transformer, inr, columns, groups=groups, modulated=modulated)

    def weight(self, layer: int, factor: Tensor) -> Tensor:
        base = self.mlp.weights[str(layer)].unflatten(1, (-1, factor.shape[2]))  # the same for all images, and not repeated
        return F.normalize((base * factor[:, :, None]).flatten(2), dim=1)
