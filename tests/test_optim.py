"""The optimisers against torch's own and the formula; the schedule against values by hand."""

from __future__ import annotations

import pytest
import torch
from timm.optim import Muon
from torch import nn

from huvr.optim import make_optimizer


def stepped(name: str, lr: float) -> tuple[nn.Linear, nn.Linear]:
    """A layer before and after one step from the same gradient."""
    torch.manual_seed(0)
    before, after = nn.Linear(48, 32), nn.Linear(48, 32)
    after.load_state_dict(before.state_dict())
    (after(torch.randn(64, 48)) * torch.linspace(1, 30, 32)).square().mean().backward()
    make_optimizer(name, after.parameters(), lr, 0.1, (0.9, 0.99)).step()
    return before, after


def test_adamw_is_that_of_torch() -> None:
    before, after = stepped("adamw", 0.01)
    before.weight.grad, before.bias.grad = after.weight.grad, after.bias.grad
    torch.optim.AdamW(before.parameters(), 0.01, (0.9, 0.99), weight_decay=0.1).step()
    torch.testing.assert_close(before.weight, after.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(before.bias, after.bias, rtol=1e-6, atol=1e-7)


def test_adamw_is_fused() -> None:
    assert make_optimizer("adamw", [nn.Parameter(torch.ones(1))], 0.01, 0.1, (0.9, 0.99)).param_groups[0]["fused"]


def test_muon_turns_the_gradient_of_a_matrix_into_the_nearest_orthogonal_one() -> None:
    before, after = stepped("muon", 0.01)
    update = (before.weight * (1 - 0.01 * 0.1) - after.weight).detach() / 0.01
    u, _, v = torch.linalg.svd(after.weight.grad, full_matrices=False)
    assert torch.cosine_similarity(update.flatten(), (u @ v).flatten(), dim=0) > 0.95
    # five Newton-Schulz steps leave singular values near one; the size is that of AdamW's updates
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.15)


def test_muon_leaves_biases_to_adamw_with_nesterov_momentum() -> None:
    before, after = stepped("muon", 0.01)
    # of a first step, both moments are the gradient: its sign, but for the look ahead of 1 + β₁
    expected = before.bias * (1 - 0.01 * 0.1) - 0.01 * 1.9 * after.bias.grad.sign()
    torch.testing.assert_close(after.bias, expected)


def test_muon_on_a_cpu_is_timms_without_its_rounding_to_bf16() -> None:
    _, ours = stepped("muon", 0.01)
    _, theirs = stepped("adamw", 1e-9)  # the same gradient
    before = theirs.weight.detach().clone()
    Muon(theirs.parameters(), 0.01, 0.1, nesterov=True, adjust_lr_fn="match_rms_adamw").step()
    moved, expected = ours.weight - before, theirs.weight - before
    assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
    assert not torch.equal(moved, expected)
