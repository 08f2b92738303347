"""Reconstruction against the network called by hand, and the rivals against their own definitions."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningDataModule
from PIL import Image
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio
from tiny_hypernets import run_of, tiny
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

import huvr
from huvr.cli import main
from huvr.errors import HuvrError
from huvr.hypernets.coordinates import pixel_centres
from huvr.hypernets.interface import INRParameters
from huvr.losses import LPIPSLoss
from huvr.metrics import ssim, ssim_nhwc
from huvr.tasks.base import EncoderConfig
from huvr.tasks.frechet import FrechetConfig, FrechetNetwork
from huvr.tasks.pictures import Pictures
from huvr.tasks.reconstruction import Reconstruction
from huvr.tasks.rivals import SDVAE, PatchPCA, jpeg
from huvr.viz import GAP

SMOOTH = TF.gaussian_blur(torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0)), [9, 9], [2.0, 2.0])


def measured(quiet: Any, task: Reconstruction, **data: Any) -> dict[str, float]:
    (metrics,) = quiet().test(task, Pictures("pictures", **({"workers": 0, "batch_size": 4} | data)), verbose=False)
    return metrics


def views(folder: Path, split: str, size: int | None) -> list[Tensor]:
    """The pictures of a split in [0, 1], ``(1, 3, H, W)``."""
    opened = [Image.open(path) for path in sorted((folder / split).rglob("*.png"))]
    resized = [TF.resize(each, [size], TF.InterpolationMode.BICUBIC) if size else each for each in opened]
    return [TF.pil_to_tensor(TF.center_crop(each, [size, size]) if size else each)[None] / 255 for each in resized]


def mean_psnr(drawn: list[Tensor], images: list[Tensor]) -> float:
    pairs = zip(images, drawn, strict=True)
    return float(np.mean([peak_signal_noise_ratio(i.numpy(), d.numpy(), data_range=1.0) for i, d in pairs]))


def as_numpy_stores(tokens: Tensor, kind: str) -> Tensor:
    values = tokens.numpy()
    if kind == "fp16":
        return torch.from_numpy(values.astype(np.float16).astype(np.float32))
    scale = np.abs(values).max(-1, keepdims=True).astype(np.float16).astype(np.float32)
    return torch.from_numpy(np.rint(values / scale * 127).astype(np.int8).astype(np.float32) * scale / 127)


@torch.no_grad()
def by_hand(encoder: str, image: Tensor, kind: str) -> Tensor:
    model = huvr.load(encoder)
    tintoks = model.compress(model.encode(image))
    stored = huvr.Tokens(as_numpy_stores(tintoks.cls, kind), as_numpy_stores(tintoks.patches, kind), tintoks.grid)
    return model.render(model.expand(stored), image.shape[-2:])


@pytest.mark.parametrize(("stored", "size"), [("fp16", 2 * 8 * (1 + 16)), ("int8", (8 + 2) * (1 + 16))])
def test_what_is_measured_is_drawn_from_stored_tintoks(quiet: Any, encoder: str, pictures: Path, stored: str, size: int) -> None:
    task = Reconstruction(EncoderConfig(encoder, "tintok", stored=stored))  # type: ignore[arg-type]
    metrics = measured(quiet, task, size=32)
    images = views(pictures, "val", 32)
    drawings = [by_hand(encoder, image, stored) for image in images]
    assert metrics["psnr"] == pytest.approx(mean_psnr(drawings, images), abs=1e-3)
    in_eight_bits = [(drawing.clamp(0, 1) * 255).round() / 255 for drawing in drawings]
    assert metrics["psnr_8bit"] == pytest.approx(mean_psnr(in_eight_bits, images), abs=1e-3)
    for name, measure in (("ssim", ssim), ("ssim_nhwc", ssim_nhwc)):
        assert metrics[name] == pytest.approx(measure(torch.cat(drawings), torch.cat(images)).mean().item(), abs=1e-4)
    assert (task.details["bytes_per_image"], task.details["bits_per_pixel"]) == (size, 8 * size / 32**2)
    data = {"train": "pictures (train), 18 images", "test": "pictures (val), 6 images", "view": "middle 32"}
    assert task.details["data"] == data


def test_refined_tintoks_are_stored_and_drawn(quiet: Any, encoder: str, pictures: Path) -> None:
    task = Reconstruction(EncoderConfig(encoder, "tintok", stored="int8"), refine=5)
    metrics = measured(quiet, task, size=32)
    model, images, drawings = huvr.load(encoder), views(pictures, "val", 32), []
    with torch.no_grad():
        for image in images:
            tintoks = model.refine(model.compress(model.encode(image)), image, 5).apply(lambda x: as_numpy_stores(x, "int8"))
            drawings.append(model.render(model.expand(tintoks), image.shape[-2:]))
    assert metrics["psnr"] == pytest.approx(mean_psnr(drawings, images), abs=0.01)
    assert metrics["psnr"] > mean_psnr([by_hand(encoder, image, "int8") for image in images], images) + 0.01


def test_rivals_are_measured_alike(quiet: Any, encoder: str, pictures: Path) -> None:
    task = Reconstruction(EncoderConfig(encoder, "tintok"))
    metrics = measured(quiet, task, size=32, train_images=9)
    rivals = task.details["rivals"]
    assert list(rivals) == ["pca", "jpeg"]
    assert all(rival["metrics"].keys() == metrics.keys() for rival in rivals.values())
    images, fitted = views(pictures, "val", 32), PatchPCA(views(pictures, "train", 32)[::2], 8, 8)
    drawn = [fitted.reconstruct(image) for image in images]
    assert rivals["pca"]["metrics"]["psnr"] == pytest.approx(mean_psnr(drawn, images), abs=0.01)  # less what fp16 takes
    assert rivals["pca"]["bytes_per_image"] == 2 * 8 * 16  # there is no global token
    assert rivals["jpeg"]["images_larger_than_tintoks"] == 6  # the headers of a JPEG alone are more than 272 bytes
    assert rivals["jpeg"]["bytes_per_image"] > 272


# Vectors of an image and the numbers of each: a weight token for every column, an instance token, latents of two levels.
STORED = {"TransINR": [(27, 16)], "GINR": [(12, 16)], "ANR": [(6, 32)], "LIFT": [(1, 8), (4, 6)]}


@pytest.mark.parametrize("stored", ["fp16", "int8"])
@pytest.mark.parametrize("name", STORED)
def test_parameters_of_other_hyper_networks_are_stored_and_drawn_alike(
    quiet: Any, pictures: Path, tmp_path: Path, name: str, stored: str
) -> None:
    task = Reconstruction(EncoderConfig(run_of(tiny(name), tmp_path / "run"), "tintok", stored=stored))  # type: ignore[arg-type]
    metrics = measured(quiet, task, size=32)
    net, images, drawings = tiny(name).eval(), views(pictures, "val", 32), []
    for image in images:
        with torch.no_grad():
            found = net.encode(image)
            kept = INRParameters(tuple(as_numpy_stores(tensor, stored) for tensor in found.tensors), found.size)
            drawings.append(net.query(kept, pixel_centres((32, 32))).transpose(1, 2).unflatten(2, (32, 32)))
    assert metrics["psnr"] == pytest.approx(mean_psnr(drawings, images), abs=1e-3)
    size = sum(count * (2 * numbers if stored == "fp16" else numbers + 2) for count, numbers in STORED[name])
    assert found.numbers == sum(count * numbers for count, numbers in STORED[name])
    assert task.details["bytes_per_image"] == size
    assert task.details["tokens"] == f"parameters of {type(net).__name__}"
    components = size // 4 // 2 if stored == "fp16" else size // 4 - 2  # of each of four patches of 16 pixels
    pca = task.details["rivals"]["pca"]
    assert pca["bytes_per_image"] == 4 * (2 * components if stored == "fp16" else components + 2) <= size
    # in the same batches, as there are more components than the training patches determine
    fitted = PatchPCA(torch.cat(views(pictures, "train", 32)).split(4), 16, components).pca
    patches = [F.unfold(image, 16, stride=16).transpose(1, 2) for image in images]
    kept_patches = [as_numpy_stores(fitted(patch), stored) @ fitted.basis.T + fitted.mean for patch in patches]
    drawn = [F.fold(patch.transpose(1, 2), (32, 32), 16, stride=16) for patch in kept_patches]
    assert pca["metrics"]["psnr"] == pytest.approx(mean_psnr(drawn, images), abs=0.01)


def test_mae_has_nothing_to_draw_without_masks(quiet: Any, pictures: Path, tmp_path: Path) -> None:
    task = Reconstruction(EncoderConfig(run_of(tiny("MAE"), tmp_path / "run"), "tintok"))
    with pytest.raises(HuvrError, match=r"MAE paints hidden patches only: it needs a mask .*huvr probe --task minr"):
        measured(quiet, task, size=32)


def test_the_parameters_of_another_network_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    options = ["--data.root", "pictures", "--data.size", "32", "--data.workers", "0", "--run", "there"]
    assert main(["probe", "--task", "reconstruction", "--encoder", run_of(tiny("GINR"), tmp_path / "run"), *options]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert (record["headline"], record["tokens"], record["bytes_per_image"]) == ("psnr", "parameters of GINR", 2 * 12 * 16)


def test_whole_pictures_of_any_size(quiet: Any, encoder: str, pictures: Path) -> None:
    Image.fromarray(np.full((19, 33, 3), 128, np.uint8)).save(pictures / "val" / "red" / "9.png")
    task = Reconstruction(EncoderConfig(encoder, "tintok"))
    metrics = measured(quiet, task, size=None)
    images = views(pictures, "val", None)
    assert metrics["psnr"] == pytest.approx(mean_psnr([by_hand(encoder, image, "fp16") for image in images], images), abs=1e-3)
    sizes = [(6, 16 * (1 + 5 * 7), 40 * 52), (1, 16 * (1 + 3 * 5), 19 * 33)]  # the edge is repeated up to whole patches
    assert task.details["bytes_per_image"] == pytest.approx(sum(n * size for n, size, _ in sizes) / 7)
    assert task.details["bits_per_pixel"] == pytest.approx(sum(n * 8 * size / pixels for n, size, pixels in sizes) / 7)
    with Image.open("drawings.png") as shown:
        assert shown.size == (4 * 52 + 3 * GAP, 4 * 40 + 3 * GAP)
        expected = images[0][0].mul(255).byte()  # the first of the row is the original
        assert torch.equal(TF.pil_to_tensor(shown)[:, :40, :52], expected)


def test_lpips_with_local_trunks(quiet: Any, encoder: str, pictures: Path) -> None:
    torch.manual_seed(0)
    trunk = "squeeze.safetensors"
    save_file(torchvision.models.squeezenet1_1(weights=None).features.state_dict(), trunk)
    metrics = measured(quiet, Reconstruction(EncoderConfig(encoder, "tintok"), ("squeeze",), {"squeeze": trunk}), size=32)
    images = torch.cat(views(pictures, "val", 32))
    drawn = torch.cat([by_hand(encoder, image[None], "fp16") for image in images])
    assert metrics["lpips_squeeze"] == pytest.approx(LPIPSLoss("squeeze", trunk)(drawn, images).item(), rel=1e-3)
    task = Reconstruction(EncoderConfig(encoder, "tintok"), ("squeeze",), {"squeeze": "absent.pth"})
    with pytest.raises(HuvrError, match=r"lpips_trunks.squeeze: lpips_trunk: no such file: absent.pth"):
        measured(quiet, task, size=32)


def test_frechet_distance_is_named_after_its_network(quiet: Any, encoder: str, pictures: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    frechet = FrechetConfig("test_vit", "vit.safetensors")
    task = Reconstruction(EncoderConfig(encoder, "tintok"), frechet=frechet, rivals=("jpeg",))
    metrics = measured(quiet, task, size=32)
    network = FrechetNetwork(frechet)
    distance = network.distance()
    for image in views(pictures, "val", 32):
        drawn = by_hand(encoder, image, "fp16")
        distance.update(network((image * 255).byte()), real=True)
        distance.update(network((drawn.clamp(0, 1) * 255).round().byte()), real=False)
    assert metrics["frechet_test_vit"] == pytest.approx(distance.compute().item(), rel=1e-3)
    assert 0 < task.details["rivals"]["jpeg"]["metrics"]["frechet_test_vit"] < metrics["frechet_test_vit"]
    with pytest.raises(HuvrError, match=r"frechet: 1 image\(s\), at least 2 are needed"):
        measured(quiet, Reconstruction(EncoderConfig(encoder, "tintok"), frechet=frechet), size=32, test_images=1)


def test_a_perfect_drawing_counts_100_db(quiet: Any, encoder: str, pictures: Path) -> None:
    for path in (pictures / "val").rglob("*.png"):
        Image.new("RGB", (40, 40), (128, 128, 128)).save(path)
    task = Reconstruction(EncoderConfig(encoder, "tintok"))
    measured(quiet, task, size=32)
    assert task.details["rivals"]["jpeg"]["metrics"]["psnr"] == 100


def test_unreadable_images_are_left_out(quiet: Any, encoder: str, pictures: Path) -> None:
    (pictures / "val" / "blue" / "0.png").write_bytes(b"no image")
    task = Reconstruction(EncoderConfig(encoder, "tintok"), rivals=())
    with pytest.warns(UserWarning, match=r"image skipped, 1 so far: .*0.png: not a readable image"):
        metrics = measured(quiet, task, size=32, batch_size=1)
    (pictures / "val" / "blue" / "0.png").unlink()
    images = views(pictures, "val", 32)
    assert metrics["psnr"] == pytest.approx(mean_psnr([by_hand(encoder, image, "fp16") for image in images], images), abs=1e-3)
    assert task.details["data"]["test"] == "pictures (val), 5 images"


def test_patch_pca_is_the_svd_of_all_patches() -> None:
    whole = SMOOTH[..., :48, :64]
    patches = torch.stack([tile.flatten() for image in whole for row in image.split(8, 1) for tile in row.split(8, 2)]).double()
    mean = patches.mean(0)
    axes = torch.linalg.svd(patches - mean, full_matrices=False).Vh[:5]
    expected = (patches - mean) @ axes.T @ axes + mean
    drawn = PatchPCA(whole.split(1), 8, 5).reconstruct(whole)
    found = torch.stack([tile.flatten() for image in drawn for row in image.split(8, 1) for tile in row.split(8, 2)])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_patch_pca_of_any_size_and_stored() -> None:
    pca = PatchPCA([SMOOTH], 8, 500)  # more than a patch has
    torch.testing.assert_close(pca.reconstruct(SMOOTH), SMOOTH, rtol=0, atol=1e-4)
    for kind, size in (("fp16", 2 * 192), ("int8", 192 + 2)):
        drawn, sizes = pca.stored(SMOOTH, kind, 10**6)  # type: ignore[arg-type]
        assert sizes == [7 * 9 * size] * 2
        assert 0 < (drawn - SMOOTH).abs().max() < 0.05
    with pytest.raises(HuvrError, match="per-patch PCA: no images to fit it to"):
        PatchPCA([], 8, 5)


def files_of(image: Tensor) -> dict[int, bytes]:
    """The JPEG file of every quality."""
    files = {}
    for quality in range(1, 101):
        file = io.BytesIO()
        TF.to_pil_image((image * 255).round().byte()).save(file, "JPEG", quality=quality, optimize=True)
        files[quality] = file.getvalue()
    return files


@pytest.mark.parametrize("limit", [800, 1100, 1500, 4000, 100_000])
def test_jpeg_is_the_best_that_fits(limit: int) -> None:
    drawn, sizes = jpeg(SMOOTH, limit)
    for image, found, size in zip(SMOOTH, drawn, sizes, strict=True):
        best = max((file for file in files_of(image).values() if len(file) <= limit), key=len)
        assert size == len(best) <= limit
        assert torch.equal((found * 255).round().byte(), TF.pil_to_tensor(Image.open(io.BytesIO(best))))


def test_jpeg_says_when_even_the_worst_is_too_large() -> None:
    _, sizes = jpeg(SMOOTH, 100)
    assert sizes == [len(files_of(image)[1]) for image in SMOOTH]
    assert min(sizes) > 100


def test_sdvae_stores_its_latents(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = diffusers.AutoencoderKL(**blocks, block_out_channels=[8, 8], norm_num_groups=4).eval()
    vae.save_pretrained(tmp_path)
    rival, image = SDVAE(str(tmp_path), torch.device("cpu")), SMOOTH[..., :48, :64]
    with torch.no_grad():
        latents = vae.encode(image * 2 - 1).latent_dist.mean.half().float()
        expected = vae.decode(latents).sample / 2 + 0.5
        drawn, sizes = rival.stored(image, "fp16")
        odd, more = rival.stored(SMOOTH[..., :49, :63], "int8")
    torch.testing.assert_close(drawn, expected)
    assert sizes == [2 * 4 * 24 * 32] * 2
    assert odd.shape == (2, 3, 49, 63)
    assert more == [(4 + 2) * 25 * 32] * 2


def test_sdvae_without_diffusers_or_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "diffusers", None)
        with pytest.raises(HuvrError, match=r"sdvae needs diffusers .*pip install 'huvr\[sdvae\]'"):
            SDVAE("any", torch.device("cpu"))
    pytest.importorskip("diffusers")
    with pytest.raises(HuvrError, match=r"sdvae .*: not to be had .*allowed: a hub repository or a local folder"):
        SDVAE(str(tmp_path), torch.device("cpu"))


def test_from_the_command_line(encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--encoder", encoder, "--data.root", "pictures", "--data.size", "32", "--data.workers", "0", "--run", "there"]
    assert main(["probe", "--task", "reconstruction", *options]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert next(iter(record["metrics"])) == "psnr"
    assert record["tokens"] == "tintok"
    assert record["rivals"]["pca"]["bytes_per_image"] == 256
    assert Path("there/drawings.png").is_file()
    assert main(["probe", "--task", "reconstruction", *options, "--tokens", "standard"]) == 2
    assert "tokens standard: reconstruction is from TinToks: --tokens tintok" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lpips": ("resnet",)}, r"lpips \['resnet'\]: choose among alex, squeeze, vgg, each once"),
        ({"rivals": ("jpeg", "jpeg")}, r"rivals \['jpeg', 'jpeg'\]: choose among pca, jpeg, sdvae, each once"),
        ({"refine": -1}, "refine -1: expected a number of steps, 0 or more"),
        ({"lpips": ("vgg",), "lpips_trunks": {"alex": "a.pth"}}, r"lpips_trunks alex: not among lpips \['vgg'\]"),
    ],
)
def test_mistakes(encoder: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(HuvrError, match=line):
        Reconstruction(EncoderConfig(encoder, "tintok"), **options)


def test_only_tintoks_of_a_huvr_network() -> None:
    with pytest.raises(HuvrError, match="encoder timm:test_vit: only a HUVR network or another hyper-network can draw"):
        Reconstruction(EncoderConfig("timm:test_vit"))
    with pytest.raises(HuvrError, match="tokens pca8: reconstruction is from TinToks: --tokens tintok"):
        Reconstruction(EncoderConfig("anywhere", "pca8"))


def test_mistakes_about_pictures(quiet: Any, encoder: str, pictures: Path) -> None:
    for options in ({"size": 0}, {"batch_size": 0}, {"test_images": 0}, {"train_images": 0}, {"workers": -1}):
        with pytest.raises(HuvrError, match=r"expected 1 or more; workers: 0 or more"):
            Pictures("pictures", **options)  # type: ignore[arg-type]
    with pytest.raises(HuvrError, match="which data"):
        Pictures()
    data = Pictures("pictures/val", held_out=0)
    with pytest.raises(HuvrError, match="data root 'pictures/val': nothing is held out to be measured on"):
        data.setup()
    other = LightningDataModule()
    with pytest.raises(HuvrError, match=r"data: reconstruction is of huvr.tasks.pictures.Pictures"):
        quiet().test(Reconstruction(EncoderConfig(encoder, "tintok")), other)
