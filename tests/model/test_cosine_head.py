from __future__ import annotations

import numpy as np
import scipy.fft
import torch

from huvr.model.cosine_head import CosineHead, cosines


def a_head() -> CosineHead:
    torch.manual_seed(0)
    head = CosineHead(10, 7, 4)
    torch.nn.init.normal_(head.of_global.weight)
    return head


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 2, 3, 10), torch.randn(2, 7)


def test_the_basis_is_that_of_scipy() -> None:
    coefficients = np.random.default_rng(0).normal(size=8)
    expected = scipy.fft.idct(coefficients, norm="ortho")
    np.testing.assert_allclose(cosines(torch.arange(8.0), 8).double().numpy() @ coefficients, expected, atol=1e-6)


def test_the_picture_is_the_inverse_transform_of_each_patchs_coefficients() -> None:
    head, (u, c) = a_head(), vectors()
    coefficients = (head.of_patch(u) + head.of_global(c)[:, None, None]).detach().numpy()
    patches = scipy.fft.idctn(coefficients.reshape(2, 2, 3, 3, 4, 4), axes=(-2, -1), norm="ortho")  # (B, h, w, C, y, x)
    expected = patches.transpose(0, 3, 1, 4, 2, 5).reshape(2, 3, 8, 12)
    np.testing.assert_allclose(head(u, c).detach().numpy(), expected, atol=1e-5)


def test_between_the_pixels_it_paints_the_same_waves() -> None:
    # patches of one wave, cos(π y / 4) down the rows
    head, (u, c) = a_head(), vectors()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        head.of_patch.bias.view(3, 4, 4)[1, 1, 0] = 1
    rows = torch.arange(4) + 0.5 + 0.3
    wave = (torch.pi * rows / 4).cos() * (2 / 4) ** 0.5 * (1 / 4) ** 0.5
    picture = head(u, c, (0.3, -0.2))
    torch.testing.assert_close(picture[0, 1, :4], wave[:, None].expand(4, 12))
    assert picture[:, [0, 2]].abs().max() < 1e-6


def test_the_global_vector_adds_nothing_at_first() -> None:
    torch.manual_seed(0)
    head, (u, c) = CosineHead(10, 7, 4), vectors()
    assert torch.equal(head(u, c), head(u, c.roll(1, 0)))
