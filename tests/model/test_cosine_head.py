from __future__ import annotations

import numpy as np
import scipy.fft
import torch

from huvr.model import Tokens
from huvr.model.cosine_head import CosineHead, cosines


def a_head(dim: int = 10, patch: int = 4) -> CosineHead:
    torch.manual_seed(0)
    head = CosineHead(dim, patch)
    torch.nn.init.normal_(head.to_global[1].weight)
    return head


def some_tokens(dim: int = 10) -> Tokens:
    torch.manual_seed(1)
    return Tokens(torch.randn(2, dim), torch.randn(2, 6, dim), (2, 3))


def test_the_basis_is_that_of_scipy() -> None:
    coefficients = np.random.default_rng(0).normal(size=8)
    expected = scipy.fft.idct(coefficients, norm="ortho")
    np.testing.assert_allclose(cosines(8).double().numpy() @ coefficients, expected, atol=1e-6)


def test_the_picture_is_the_inverse_transform_of_each_patchs_coefficients() -> None:
    head, tokens = a_head(), some_tokens()
    coefficients = (head.to_patch(tokens.patches) + head.to_global(tokens.cls)[:, None]).detach().numpy()
    patches = scipy.fft.idctn(coefficients.reshape(2, 2, 3, 3, 4, 4), axes=(-2, -1), norm="ortho")  # (B, h, w, C, y, x)
    expected = patches.transpose(0, 3, 1, 4, 2, 5).reshape(2, 3, 8, 12)
    np.testing.assert_allclose(head(tokens).detach().numpy(), expected, atol=1e-5)


def test_between_the_pixels_it_paints_the_same_waves() -> None:
    # a patch of one wave, cos(π (y + 1/2) / 4) down the rows
    head, tokens = a_head(), some_tokens()
    for branch in (head.to_patch, head.to_global):
        torch.nn.init.zeros_(branch[1].weight)
        torch.nn.init.zeros_(branch[1].bias)
    with torch.no_grad():
        head.to_patch[1].bias.view(3, 4, 4)[1, 1, 0] = 1
    rows = torch.arange(4) + 0.5 + 0.3
    wave = (torch.pi * rows / 4).cos() * (2 / 4) ** 0.5 * (1 / 4) ** 0.5
    picture = head(tokens, (0.3, -0.2))
    torch.testing.assert_close(picture[0, 1, :4], wave[:, None].expand(4, 12))
    assert picture[:, [0, 2]].abs().max() < 1e-6


def test_the_global_token_adds_nothing_at_first() -> None:
    torch.manual_seed(0)
    head, tokens = CosineHead(10, 4), some_tokens()
    other = Tokens(tokens.cls.roll(1, 0), tokens.patches, tokens.grid)
    assert torch.equal(head(tokens), head(other))
