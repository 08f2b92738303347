"""Principal components against a singular value decomposition of all tokens at once."""

from __future__ import annotations

import torch

from huvr.tasks.pca import PCA, Moments


def test_pca_in_pieces_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(200, 12) @ torch.randn(12, 12) + 5
    moments = Moments(12, torch.device("cpu"))
    for piece in tokens.split(33):
        moments.add(piece)
    found = PCA(moments, 4)(tokens)
    centred = (tokens - tokens.mean(0)).double()
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:4]
    expected = centred @ directions.T
    signs = (found * expected).sum(0).sign()  # a component is known up to its sign
    torch.testing.assert_close(found.double(), expected * signs, rtol=1e-4, atol=1e-4)
