"""The trained network that comes with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

import huvr
from huvr.cli import main
from huvr.data import photos
from huvr.metrics import psnr
from huvr.weights import SHIPPED

FOLDER = Path(str(files("huvr"))) / "shipped" / SHIPPED


def test_it_is_small_and_described() -> None:
    model = huvr.load()
    assert sum(p.numel() for p in model.parameters()) <= 7e6
    assert (FOLDER / "model.safetensors").stat().st_size <= 15e6
    assert model.config.tintok_dim == 32
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    card = (FOLDER / "README.md").read_text()
    for part in ("Data", "Recipe", "Figures", "Limits", "Licence"):
        assert f"**{part}" in card


@torch.inference_mode()
def test_it_draws_photographs_of_any_size_far_better_than_flat_patches() -> None:
    model = huvr.load()
    for path in photos.paths()["validation"]:
        picture = pil_to_tensor(Image.open(path).convert("RGB"))[None] / 255
        height, width = (side // 16 * 16 for side in picture.shape[-2:])
        picture = picture[..., :height, :width]
        flat = F.interpolate(F.avg_pool2d(picture, 16), scale_factor=16, mode="nearest-exact")
        assert psnr(model.reconstruct(picture), picture) > psnr(flat, picture) + 2


def test_reconstruct_needs_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (200, 100, 50)).save("photo.jpg")
    assert main(["reconstruct", "photo.jpg"]) == 0
    assert "photo.jpg" in capsys.readouterr().out
    assert Image.open("out/photo_panel.png").size[0] > 4 * 40
    assert main(["encode", ".", "--out", "tokens.parquet"]) == 0
    assert Path("tokens.parquet").is_file()
