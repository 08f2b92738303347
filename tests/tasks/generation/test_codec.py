"""Per-patch PCA in the place of TinToks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from huvr.errors import HuvrError
from huvr.tasks.generation.codec import PatchComponents, TinToks, open_codec, save_components
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.sampling import Sampling

IMAGES = torch.rand(20, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def patches(images: torch.Tensor) -> torch.Tensor:
    """``(B, 4, 6, 48)`` of patches of 4 pixels, by indexing."""
    rows = [torch.stack([images[:, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for c in range(6)], 1) for r in range(4)]
    return torch.stack(rows, 1).flatten(3)


def test_components_are_those_of_sklearn_and_draw_what_is_left(tmp_path: Path) -> None:
    save_components(IMAGES.split(7), 4, 10, tmp_path / "pca.safetensors")
    codec = open_codec(f"pca:{tmp_path / 'pca.safetensors'}")
    assert isinstance(codec, PatchComponents)
    assert (codec.patch, codec.dim) == (4, 10)
    tokens = codec.look(IMAGES)
    flat = patches(IMAGES).flatten(0, 2).double().numpy()
    theirs = PCA(10).fit(flat)
    expected = torch.from_numpy(theirs.inverse_transform(theirs.transform(flat))).float().view(20, 4, 6, 48)
    assert torch.allclose(patches(codec.draw(tokens)), expected, atol=1e-4)
    assert tokens.grid == (4, 6)
    assert torch.allclose(tokens.cls, tokens.patches.mean(1))
    save_components(IMAGES.split(7), 4, 48, tmp_path / "all.safetensors")
    every = PatchComponents(f"pca:{tmp_path / 'all.safetensors'}")
    assert torch.allclose(every.draw(every.look(IMAGES)), IMAGES, atol=1e-5)
    assert every.fingerprint != codec.fingerprint


def test_a_generator_learns_them(learn: Callable[..., Any], pictures: Path) -> None:
    save_components([torch.rand(8, 3, 32, 32)], 8, 6, Path("pca.safetensors"))
    kept = ModelCheckpoint("run/checkpoints", "last", monitor=None)
    model = {"encoder": "pca:pca.safetensors", "global_token": False}
    _, data = learn(pictures, model=model, enable_checkpointing=True, callbacks=[kept])
    assert data.space.shape == (16, 6)
    (picture,) = load_generator("run").pictures(1, [0], Sampling(steps=2))
    assert picture.shape == (3, 32, 32)
    save_components([torch.rand(8, 3, 32, 32)], 8, 6, Path("other.safetensors"))
    with pytest.raises(HuvrError, match=r"other.safetensors: the generator learned TinToks of another network"):
        load_generator("run", "pca:other.safetensors")


def test_other_files(tmp_path: Path, encoder: str) -> None:
    assert isinstance(open_codec(encoder), TinToks)
    with pytest.raises(HuvrError, match="not a readable safetensors file"):
        open_codec("pca:nowhere")
    save_file({"mean": torch.zeros(48)}, tmp_path / "half.safetensors")
    with pytest.raises(HuvrError, match=r"half.safetensors: not a file of patch components"):
        open_codec(f"pca:{tmp_path / 'half.safetensors'}")
    save_components([IMAGES], 4, 3, tmp_path / "pca.safetensors")
    codec = open_codec(f"pca:{tmp_path / 'pca.safetensors'}")
    with pytest.raises(HuvrError, match="scale 2: patch components can only be drawn at scale 1"):
        codec.draw(codec.look(IMAGES), 2)
