"""Teachers against timm used by hand; weights are random and saved to files, as no test may need the hub."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import v2

from huvr.errors import HuvrError
from huvr.model import Tokens
from huvr.teacher import Teacher, TeacherConfig, Teachers

SHARED = Path(__file__).parents[2] / "shared"
VIT, PHOTOS = SHARED / "weights" / "vit_tiny_patch16_224.fp16.safetensors", SHARED / "data" / "imagenet1k-sample-256"
IMAGES = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, name: str, suffix: str = ".safetensors", **arguments: object) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(1)
    network = timm.create_model(name, **arguments).eval()
    file = folder / f"{name}{suffix}"
    save_file(network.state_dict(), file) if suffix == ".safetensors" else torch.save({"state_dict": network.state_dict()}, file)
    return network, str(file)


def features(network: torch.nn.Module, images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    with torch.no_grad():
        return network.forward_features(v2.functional.normalize(images, mean, std))  # type: ignore[operator]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_a_vit_sees_the_crop_with_its_own_normalisation(tmp_path: Path, suffix: str, classes: int) -> None:
    network, file = saved(tmp_path, "test_vit", suffix, num_classes=classes, dynamic_img_size=True)
    tokens = Teacher(TeacherConfig("test_vit", file))(IMAGES, (4, 3))
    expected = features(network, IMAGES, [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(tokens.cls, expected[:, 0])
    torch.testing.assert_close(tokens.patches, expected[:, 1:])


def test_the_normalisation_can_be_given(tmp_path: Path) -> None:
    network, file = saved(tmp_path, "test_vit", dynamic_img_size=True)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    tokens = Teacher(TeacherConfig("test_vit", file, mean=mean, std=std))(IMAGES, (4, 3))
    torch.testing.assert_close(tokens.patches, features(network, IMAGES, list(mean), list(std))[:, 1:])


def test_a_vit_sees_a_size_that_fits_the_grid_of_the_student(tmp_path: Path) -> None:
    network, file = saved(tmp_path, "test_vit", dynamic_img_size=True)
    tokens = Teacher(TeacherConfig("test_vit", file))(IMAGES, (8, 6))  # a student with patches of 8 pixels
    twice = v2.functional.resize(IMAGES, [128, 96], v2.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(tokens.patches, features(network, twice, [0.5] * 3, [0.5] * 3)[:, 1:], rtol=1e-4, atol=1e-4)


def test_patches_of_a_coarser_network_are_resampled_and_averaged_for_cls(tmp_path: Path) -> None:
    network, file = saved(tmp_path, "test_convnext")
    tokens = Teacher(TeacherConfig("test_convnext", file))(IMAGES[..., :32], (4, 2))
    expected = features(network, IMAGES[..., :32], [0.5] * 3, [0.5] * 3)  # (2, 64, 2, 1)
    torch.testing.assert_close(tokens.cls, expected.mean((2, 3)))
    assert tokens.grid == (4, 2)
    # Halving resolution with a resampling that keeps the mean gives the mean of the map back.
    torch.testing.assert_close(tokens.patches.mean(1), expected.mean((2, 3)), rtol=0.2, atol=0.05)
    rows = tokens.map[..., 0]
    torch.testing.assert_close(rows[:, :, 0] > rows[:, :, 3], expected[:, :, 0, 0] > expected[:, :, 1, 0])


def test_a_network_that_merges_its_patches_sees_the_crop_as_it_is(tmp_path: Path) -> None:
    network, file = saved(tmp_path, "swin_tiny_patch4_window7_224", dynamic_img_size=True, strict_img_size=False)
    tokens = Teacher(TeacherConfig("swin_tiny_patch4_window7_224", file))(IMAGES[..., :32], (4, 2))
    expected = features(network, IMAGES[..., :32], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # (2, 2, 1, 768)
    torch.testing.assert_close(tokens.cls, expected.mean((1, 2)))


@pytest.mark.parametrize(("size", "seen"), [((64, 64), (96, 96)), ((64, 16), (192, 48)), ((32, 32), (96, 96))])
def test_an_image_size_keeps_the_aspect(tmp_path: Path, size: tuple[int, int], seen: tuple[int, int]) -> None:
    _, file = saved(tmp_path, "test_vit")
    teacher = Teacher(TeacherConfig("test_vit", file, image_size=96))
    assert teacher.input_size(size, (4, 4)) == seen
    assert teacher(torch.rand(1, 3, *size), (4, 4)).grid == (4, 4)


def test_a_network_of_one_size_sees_that_size(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "test_vit_relpos")
    teacher = Teacher(TeacherConfig("test_vit_relpos", file))
    assert teacher.input_size((64, 48), (4, 3)) == (160, 160)
    assert teacher(IMAGES, (4, 3)).patches.shape == (2, 12, teacher.network.num_features)
    with pytest.raises(HuvrError, match="only takes images of 160 pixels"):
        Teacher(TeacherConfig("test_vit_relpos", file, image_size=96))


def test_a_teacher_is_frozen(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "test_vit")
    teacher = Teacher(TeacherConfig("test_vit", file))
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher(IMAGES.clone().requires_grad_(), (4, 3)).patches.requires_grad


def test_products_are_in_bf16_and_norms_in_fp32_where_asked_for(tmp_path: Path) -> None:
    network, file = saved(tmp_path, "test_vit", dynamic_img_size=True)
    teacher = Teacher(TeacherConfig("test_vit", file), bf16=True)
    kinds = {type(layer).__name__: layer.weight.dtype for layer in teacher.network.modules() if hasattr(layer, "weight")}
    assert kinds == {"Conv2d": torch.bfloat16, "Linear": torch.bfloat16, "LayerNorm": torch.float32}
    tokens = teacher(IMAGES, (4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        expected = features(network, IMAGES, [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], rtol=0, atol=0)
    assert tokens.cls.dtype == tokens.patches.dtype == torch.float32
    exact = features(network, IMAGES, [0.5] * 3, [0.5] * 3)[:, 1:]
    assert 0 < (tokens.patches - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_batch_that_comes_again_is_looked_at_once(tmp_path: Path) -> None:
    """Other images under the same number tell who looks at them."""
    configs = [TeacherConfig(name, saved(tmp_path, name)[1]) for name in ("test_vit", "test_convnext")]
    teachers, others = Teachers(configs), IMAGES.flip(0)
    alone = [Teacher(config)(others, (4, 3)) for config in configs]

    def same(ones: list[Tokens], others: list[Tokens]) -> bool:
        return all(torch.equal(one.sequence, other.sequence) for one, other in zip(ones, others, strict=True))

    first = teachers(IMAGES, (4, 3), (7, 2))
    assert not same(first, alone)
    assert same(teachers(others, (4, 3), (8, 1)), alone)
    assert same(teachers(others, (4, 3), (7, 1)), first)
    assert same(teachers(others, (4, 3)), alone)
    assert same(teachers(others, (4, 3), (7, 0)), first)
    assert same(teachers(others, (4, 3), (7, 0)), alone)  # forgotten after its last time
    teachers.forget()
    assert not same(teachers(IMAGES, (4, 3), (8, 0)), alone)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("vit_large_patch16_dinov3.lvd1689m", 1024), ("vit_base_patch14_reg4_dinov2.lvd142m", 768), ("test_convnext", 64)],
)
def test_the_width_is_known_without_weights(name: str, dim: int) -> None:
    assert TeacherConfig(name).dim == dim


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_mistakes_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = saved(tmp_path, "test_convnext")
    torch.save({"head.bias": Bomb()}, tmp_path / "bomb.pth")
    mistakes = {
        ("test_vti", file): r"'test_vti' is no timm model \(the nearest is test_vit",
        ("test_vit.r999", "hub"): "Invalid pretrained tag",
        ("test_vit.r999", file): "Invalid pretrained tag",
        ("test_vit", str(tmp_path / "absent.pth")): "weights of test_vit: no such file",
        ("test_vit", file): "network 'test_vit': .*Missing key",
        ("test_vit", str(tmp_path / "bomb.pth")): "holds no tensors",
    }
    for (name, weights), message in mistakes.items():
        with pytest.raises(HuvrError, match=message) as error:
            Teacher(TeacherConfig(name, weights))
        assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_weights_that_cannot_be_fetched_name_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("401: this repository\nis gated")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    expected = (
        r"dinov3.* could not be fetched \(401: this repository is gated\): give a local file .* vit_base_patch14_reg4_dinov2"
    )
    with pytest.raises(HuvrError, match=expected):
        Teacher(TeacherConfig("vit_small_patch16_dinov3.lvd1689m"))
    assert timm.models.get_pretrained_cfg("vit_base_patch14_reg4_dinov2.lvd142m").license == "apache-2.0"  # type: ignore[union-attr]


@pytest.mark.skipif(not (VIT.exists() and PHOTOS.exists()), reason="needs a real teacher and photographs")
def test_a_real_teacher_recognises_photographs() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = next(parquet.ParquetFile(PHOTOS / "train.parquet").iter_batches(48, columns=["image", "label"])).to_pylist()
    teacher = Teacher(TeacherConfig("vit_tiny_patch16_224", str(VIT)))
    labels = np.array([row["label"] for row in rows])
    photos = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    for side, grid in ((224, (14, 14)), (256, (16, 16))):
        crop = v2.Compose(
            [v2.Resize(side, antialias=True), v2.CenterCrop(side), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        )
        tokens = teacher(torch.stack([crop(photo) for photo in photos]), grid)
        assert tokens.patches.shape == (48, grid[0] * grid[1], 192)
        top1 = teacher.network.head(tokens.cls).argmax(1).numpy()
        assert (top1 == labels).mean() > 0.65
