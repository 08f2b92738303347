"""Pretraining on made-up images with a tiny network and random teachers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partialmethod
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_dtype

from huvr.commands.predictions import PictureWriter
from huvr.errors import HuvrError
from huvr.losses import LossWeights
from huvr.metrics import psnr
from huvr.model import HUVR, HUVRConfig
from huvr.optim import warmup_cosine
from huvr.phase import draw_phase, moved
from huvr.pretrain import Pretraining
from huvr.teacher import TeacherConfig, Teachers
from huvr.viz import to_uint8

TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=2, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=2, decoder_heads=3,
    decoder_hidden=96, decoder_attention=True, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip


def loader(images: int = 8, batch_size: int = 4, side: int = 32, kind: torch.dtype = torch.uint8) -> DataLoader:
    coarse = torch.rand(images, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    pictures = to_dtype(F.interpolate(coarse, (side, side), mode="bilinear"), kind, scale=True)
    return DataLoader([{"image": picture} for picture in pictures], batch_size=batch_size)  # type: ignore[arg-type]


def trainer(folder: Path, **options: object) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    logger = TensorBoardLogger(folder, name=None, version="")
    return Trainer(**{**quiet, "logger": logger, "max_steps": 2, "log_every_n_steps": 1, **options})  # type: ignore[arg-type]


def logged(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[TeacherConfig]:
    """A ViT and a convolutional network of different widths, with random weights."""
    folder, configs = tmp_path_factory.mktemp("teachers"), []
    torch.manual_seed(0)
    for name in ("test_vit3", "test_convnext"):
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
        configs.append(TeacherConfig(name, str(folder / f"{name}.safetensors")))
    return configs


def test_the_schedule_is_linear_then_cosine() -> None:
    steps, warmup, floor = 100, 20, 0.01
    values = [warmup_cosine(step, steps, warmup, floor) for step in range(steps + 1)]
    expected = [s / 20 if s < 20 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (s - 20) / 80)) for s in range(101)]
    np.testing.assert_allclose(values, expected)
    assert (values[0], values[20], values[100]) == (0, 1, floor)
    assert warmup_cosine(0, 10, 0, floor) == 1


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 8), (2, 4)])
def test_the_learning_rate_follows_the_effective_batch(tmp_path: Path, accumulate: int, steps: int) -> None:
    module = Pretraining(TINY, lr=0.5, min_lr=0.001, warmup=0.25, pictures_every=0)
    fit = trainer(tmp_path, max_steps=-1, max_epochs=4, accumulate_grad_batches=accumulate)
    fit.fit(module, loader(8, 4))
    peak = 0.5 * 4 * accumulate / 256
    rates = [event.value for event in logged(tmp_path).Scalars("lr")]
    expected = [
        peak * s / (steps / 4) if s < steps / 4
        else 0.001 + (peak - 0.001) * 0.5 * (1 + math.cos(math.pi * (s - steps / 4) / (steps * 3 / 4)))
        for s in range(steps)
    ]  # fmt: skip
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    group = fit.optimizers[0].param_groups
    assert len(group) == 1  # weight decay everywhere
    assert group[0]["weight_decay"] == 0.01
    assert len(group[0]["params"]) == len(list(module.parameters()))


def test_data_of_ones_own_that_do_not_tell_the_size_of_their_batches(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader()

    with pytest.raises(HuvrError, match="data: Data has no attribute batch_size, by which the learning rate goes"):
        trainer(tmp_path).fit(Pretraining(TINY), datamodule=Data())


def wave(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return 0.5 + 0.2 * np.sin(2 * np.pi * rows / 16 + 0.3) + 0.2 * np.cos(2 * np.pi * columns / 11)


@pytest.mark.parametrize("phase", [(0.25, 0.0), (0.0, -0.4), (-0.5, 0.5), (0.13, 0.31)])
def test_moved_images_show_what_lies_between_the_pixels(phase: tuple[float, float]) -> None:
    rows, columns = np.mgrid[:40, :48].astype(float)
    image = torch.tensor(wave(rows, columns), dtype=torch.float32).expand(1, 3, -1, -1)
    expected = torch.tensor(wave(rows + phase[0], columns + phase[1]), dtype=torch.float32)
    inside = (0, 0, slice(2, -2), slice(2, -2))
    assert (moved(image, phase)[inside] - expected[inside[2:]]).abs().max() < 0.01
    assert (image[inside] - expected[inside[2:]]).abs().max() > 0.01  # not moving fails
    assert moved(image, (0.0, 0.0)) is image


def test_painting_and_moving_agree_on_directions() -> None:
    """Four pixels down is one point of the INR: inside a patch both are exact."""
    torch.manual_seed(0)
    net = HUVR(HUVRConfig(**{**asdict(TINY), "image_size": 16, "patch": 16})).eval()
    with torch.no_grad():
        tokens = net.expand(net.compress(net.encode(torch.rand(1, 3, 16, 16))))
        still = net.paint(tokens)
        for phase, inside in (((4.0, 0.0), (..., slice(4, 8), slice(None))), ((0.0, 4.0), (..., slice(4, 8)))):
            torch.testing.assert_close(net.paint(tokens, phase)[inside], moved(still, phase)[inside], rtol=0, atol=1e-5)


def test_phases_are_drawn_anew_each_step_within_their_limit() -> None:
    phases = np.array([draw_phase(0.5, 7, step) for step in range(500)])
    assert np.abs(phases).max() <= 0.5
    assert np.abs(phases.mean(0)).max() < 0.05
    np.testing.assert_allclose(phases.std(0), 1 / math.sqrt(12), rtol=0.1)
    assert abs(np.corrcoef(phases.T)[0, 1]) < 0.15
    assert len(np.unique(phases)) == 1000
    assert draw_phase(0.5, 7, 3) == tuple(phases[3])
    assert draw_phase(0.5, 8, 3) != tuple(phases[3])
    assert draw_phase(0.0, 7, 3) == (0, 0)


def test_training_learns_teachers_and_pixels(tmp_path: Path, teachers: list[TeacherConfig]) -> None:
    torch.manual_seed(0)
    weights = LossWeights(ssim=0.5, log_pixel=0.25)
    module = Pretraining(TINY, teachers, weights, lr=0.3, warmup=0.0, phase_jitter=0.5, pictures_every=0)
    trainer(tmp_path, max_steps=30).fit(module, loader(4, 4))
    places = ("encoder_cls", "encoder_patches", "decoder_cls", "decoder_patches")
    events = logged(tmp_path)
    for name in ("pixel", "log_pixel", "ssim", *places, *(f"{place}_1" for place in places)):
        curve = np.array([event.value for event in events.Scalars(f"train/{name}")])
        errors = np.exp(curve) if name == "log_pixel" else curve  # a tenth less of a negative number would be more
        assert np.mean(errors[-3:]) < 0.9 * np.mean(errors[:3]), (name, curve)
    first = {name.removeprefix("train/"): events.Scalars(name)[0].value for name in events.Tags()["scalars"] if "train/" in name}
    asked = asdict(weights) | {f"{place}_1": getattr(weights, place) for place in places}
    assert first.pop("loss") == pytest.approx(
        sum(asked[name] * value for name, value in first.items() if name != "psnr"), rel=1e-4
    )


def test_lpips_counts_half_where_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(torchvision.models.squeezenet1_1(weights=None).features.state_dict(), tmp_path / "trunk.safetensors")
    module = Pretraining(
        TINY, weights=LossWeights(lpips=0.5, koleo=0), lpips_net="squeeze", lpips_trunk=str(tmp_path / "trunk.safetensors"),
        pictures_every=0,
    )  # fmt: skip
    trainer(tmp_path, max_steps=1).fit(module, loader())
    pixel, perceptual, total = (logged(tmp_path).Scalars(f"train/{name}")[0].value for name in ("pixel", "lpips", "loss"))
    assert perceptual > 0
    assert total == pytest.approx(pixel + 0.5 * perceptual)
    assert not [name for name in module.state_dict() if "lpips" in name]


def test_gradients_reach_both_branches_and_are_logged_before_clipping(tmp_path: Path) -> None:
    module = Pretraining(TINY, pictures_every=0)
    trainer(tmp_path, gradient_clip_val=1e-6).fit(module, loader())
    for branch in ("patch", "global"):
        assert all(event.value > 1e-5 for event in logged(tmp_path).Scalars(f"grad_norm/{branch}"))


def test_a_checkpoint_holds_the_whole_student_and_no_teacher(tmp_path: Path, teachers: list[TeacherConfig]) -> None:
    module = Pretraining(TINY, teachers, pictures_every=0)
    callback = EMAWeightAveraging(decay=0.9)
    fit = trainer(tmp_path, callbacks=[callback])
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    net = HUVR(HUVRConfig(**checkpoint["huvr_config"]))
    assert net.config.distill_dims == {
        "encoder_cls": 96, "encoder_patches": 96, "decoder_cls": 96, "decoder_patches": 96,
        "encoder_cls_1": 64, "encoder_patches_1": 64, "decoder_cls_1": 64, "decoder_patches_1": 64,
    }  # fmt: skip
    net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in checkpoint["state_dict"].items()})
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in net.parameters())
    assert not any("teacher" in name for name, _ in callback._average_model.named_parameters())  # type: ignore[union-attr]


def test_validation_is_the_mean_over_images_and_needs_no_teacher(tmp_path: Path) -> None:
    gone = TeacherConfig("test_vit", str(tmp_path / "gone.safetensors"))
    module = Pretraining(TINY, [gone])
    [values] = trainer(tmp_path).validate(module, loader(5, 3), verbose=False)
    images = torch.cat([batch["image"] for batch in loader(5, 3)]) / 255
    with torch.no_grad():
        errors = (module.net.reconstruct(images) - images).square().mean((1, 2, 3)).numpy()
    assert values["val/psnr"] == pytest.approx(-10 * np.log10(errors).mean(), rel=1e-5)
    assert set(values) == {"val/psnr", "val/ssim"}
    reconstructions = trainer(tmp_path).predict(module, loader(5, 3, kind=torch.float32))
    assert [r.shape[0] for r in reconstructions] == [3, 2]  # type: ignore[union-attr]
    with pytest.raises(HuvrError, match=r"no such file: .*gone"):
        trainer(tmp_path).fit(module, loader())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(("side", "kind"), [(32, torch.uint8), (37, torch.float32)])
def test_any_precision_size_and_kind_of_images(tmp_path: Path, precision: str, side: int, kind: torch.dtype) -> None:
    module = Pretraining(TINY, phase_jitter=0.5, pictures_every=0)
    trainer(tmp_path, precision=precision).fit(module, loader(side=side, kind=kind), loader(side=side, kind=kind))
    for name in ("train/loss", "train/koleo", "val/psnr"):
        assert all(math.isfinite(event.value) for event in logged(tmp_path).Scalars(name))
    assert all(p.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32) for p in module.parameters())


def test_numbers_are_logged_at_the_steps_that_the_logger_takes(tmp_path: Path) -> None:
    module = Pretraining(TINY, pictures_every=0)
    fit = trainer(tmp_path, max_steps=-1, max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=3)
    fit.fit(module, loader(28, 2))  # 7 steps an epoch
    for name in ("train/loss", "train/psnr", "train/pixel", "lr", "grad_norm/patch"):
        assert [event.step for event in logged(tmp_path).Scalars(name)][-1] == 11, name
        assert {event.step for event in logged(tmp_path).Scalars(name)} == {2, 5, 8, 11}, name


def test_start_is_what_is_measured_without_a_checkpoint_and_a_checkpoint_beats_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start, images = HUVR(TINY), loader(3, 3)
    start.save(tmp_path / "start")
    module = Pretraining(TINY, start=str(tmp_path / "start"), pictures_every=0)
    (values,) = trainer(tmp_path).validate(module, images, verbose=False)
    with torch.no_grad():
        truth = next(iter(images))["image"] / 255
        expected = psnr(start.eval().reconstruct(truth), truth).mean().item()
    assert values["val/psnr"] == pytest.approx(expected, rel=1e-5)

    fit = trainer(tmp_path, max_steps=2)
    fit.fit(trained := Pretraining(TINY, pictures_every=0, lr=5.0), loader())
    fit.save_checkpoint(tmp_path / "trained.ckpt")
    (tmp_path / "start").rename(tmp_path / "gone")
    module = Pretraining(TINY, start=str(tmp_path / "start"), pictures_every=0)
    trainer(tmp_path).validate(module, images, ckpt_path=tmp_path / "trained.ckpt", weights_only=True, verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), trained.parameters(), strict=True))


def test_pictures_are_logged_of_the_validation_images(tmp_path: Path) -> None:
    module = Pretraining(TINY, pictures_every=2)
    trainer(tmp_path, max_steps=4, val_check_interval=1.0).fit(module, loader(), loader(3, 3))
    assert len(logged(tmp_path).Images("pictures")) == 2
    assert module._pictured is not None
    torch.testing.assert_close(module._pictured, next(iter(loader(3, 3)))["image"] / 255)


def test_a_config_file_describes_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("""
model:
  net: {image_size: 32, patch: 8, width: 48, depth: 1, heads: 3, decoder_width: 48, decoder_heads: 3, inr_widths: [16, 16, 16]}
  teachers:
  - {name: test_vit}
  - {name: test_convnext, mean: [0.5, 0.5, 0.5], image_size: 64}
  weights: {decoder_cls: 0}
  betas: [0.9, 0.95]
""")
    parser = ArgumentParser()
    parser.add_class_arguments(Pretraining, "model")
    parsed = parser.parse_path(str(tmp_path / "config.yaml"))
    parser.set_defaults({"model.lr": 0.1})
    module = parser.instantiate_classes(parsed).model
    assert module.weights["encoder_cls_1"] == 4
    assert list(module.net.distill) == [
        "encoder_cls", "encoder_patches", "decoder_patches", "encoder_cls_1", "encoder_patches_1", "decoder_patches_1",
    ]  # fmt: skip
    assert module.teachers[1] == TeacherConfig("test_convnext", image_size=64, mean=(0.5, 0.5, 0.5))
    assert module.betas == (0.9, 0.95)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"image": torch.zeros(3, 32, 32)}


def test_streams_without_length_train_for_a_number_of_steps(tmp_path: Path) -> None:
    stream = DataLoader(Stream(), batch_size=2)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(Pretraining(TINY, pictures_every=0), stream)
    assert fit.global_step == 2
    with pytest.raises(HuvrError, match="max_epochs or max_steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(Pretraining(TINY), loader())


class Start(Callback):
    """The encoder's weights when training begins."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.weights = {name: tensor.clone() for name, tensor in module.net.encoder.vit.state_dict().items()}  # type: ignore[union-attr]

    def equal(self, others: Mapping[str, Tensor]) -> bool:
        return all(torch.equal(tensor, others[name]) for name, tensor in self.weights.items())


def test_the_encoder_begins_with_the_weights_of_a_timm_network_and_goes_on_with_its_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = timm.create_model("test_vit", img_size=32, global_pool="")
    save_file(network.state_dict(), file := tmp_path / "vit.safetensors")
    net = HUVRConfig(**{**asdict(TINY), "encoder": "test_vit", "patch": 16})

    def begun(resume: Path | None = None) -> Start:
        start, module = Start(), Pretraining(net, lr=0.1, warmup=0, pictures_every=0, encoder_weights=str(file))
        fit = trainer(tmp_path, callbacks=[start], max_steps=4 if resume else 2)
        fit.fit(module, loader(), ckpt_path=resume, weights_only=True)
        fit.save_checkpoint(tmp_path / "last.ckpt")
        return start

    assert begun().equal(network.state_dict())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    resumed = begun(tmp_path / "last.ckpt")
    assert not resumed.equal(network.state_dict())
    assert resumed.equal({name.removeprefix("net.encoder.vit."): tensor for name, tensor in saved.items()})


def test_encoder_weights_need_a_timm_network_and_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(HuvrError, match=r"encoder_weights hub: they need net\.encoder, the name of a timm ViT"):
        Pretraining(TINY, encoder_weights="hub")
    save_file(timm.create_model("test_vit2").state_dict(), file := tmp_path / "other.safetensors")
    module = Pretraining(HUVRConfig(**{**asdict(TINY), "encoder": "test_vit", "patch": 16}), encoder_weights=str(file))
    with pytest.raises(HuvrError, match=r"network 'test_vit': .*(Missing key|size mismatch)"):
        trainer(tmp_path).fit(module, loader())


def test_training_goes_on_from_a_network_and_keeps_the_heads_that_fit(tmp_path: Path, teachers: list[TeacherConfig]) -> None:
    torch.manual_seed(1)
    heads = Pretraining(TINY, teachers).net.config.distill_dims
    given = HUVR(HUVRConfig(**{**asdict(TINY), "distill_dims": heads | {"encoder_cls": 5}}))
    given.save(tmp_path / "given")
    module = Pretraining(TINY, teachers, start=str(tmp_path / "given"))
    begun, found = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}, given.state_dict()
    module.setup("validate")
    assert all(torch.equal(tensor, begun[name]) for name, tensor in module.net.state_dict().items())
    module.setup("fit")
    for name, tensor in module.net.state_dict().items():
        other = begun if name.startswith("distill.encoder_cls.") and name.endswith(("1.weight", "1.bias")) else found
        assert torch.equal(tensor, other[name]), name


def test_training_only_goes_on_from_a_network_of_its_own_shape(tmp_path: Path) -> None:
    HUVR(HUVRConfig(**{**asdict(TINY), "decoder_hidden": 64, "inr_max_frequency": 16.0})).save(tmp_path)
    with pytest.raises(
        HuvrError, match=r"start .*: another network than net: decoder_hidden is 64, not 96, inr_max_frequency is 16\.0, not 8"
    ):
        Pretraining(TINY, start=str(tmp_path)).setup("fit")
    timm_net = {**asdict(TINY), "encoder": "test_vit"}
    HUVR(HUVRConfig(**timm_net)).save(tmp_path)
    Pretraining(HUVRConfig(**{**timm_net, "depth": 7}), start=str(tmp_path)).setup("fit")  # of the released encoder alone
    with pytest.raises(HuvrError, match=r"encoder_weights hub and start huvr-tiny: training begins with one of them"):
        Pretraining(HUVRConfig(**{**asdict(TINY), "encoder": "test_vit"}), encoder_weights="hub", start="huvr-tiny")


def test_an_average_that_begins_later_holds_the_weights_of_the_start_until_then(tmp_path: Path) -> None:
    torch.manual_seed(1)
    (given := HUVR(TINY)).save(tmp_path / "given")
    module = Pretraining(TINY, start=str(tmp_path / "given"), lr=0.1, warmup=0, pictures_every=0)
    fit = trainer(tmp_path, callbacks=[EMAWeightAveraging(update_starting_at_step=100)])
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name, tensor in given.state_dict().items():
        assert torch.equal(saved["state_dict"][f"net.{name}"], tensor), name


class TwoSizes:
    """Two batches of four images of 32 pixels, two of 48."""

    batch_size = 4

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return chain(loader(), loader(side=48))


def losses_of(folder: Path, **options: Any) -> list[float]:
    """Of four steps."""
    torch.manual_seed(0)
    module = Pretraining(TINY, phase_jitter=0.5, lr=0.1, warmup=0, pictures_every=0, **options)
    trainer(folder, max_steps=4).fit(module, TwoSizes())
    return [event.value for event in logged(folder).Scalars("train/loss")]


def test_the_compiled_layers_are_graphs_without_breaks_that_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # As it is, but for what makes kernels of graphs, which needs a compiler of C++ and takes its time.
    whole = partialmethod(nn.Module.compile, fullgraph=True, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", whole)
    compiled = losses_of(tmp_path / "compiled", compile=True)
    np.testing.assert_allclose(compiled, losses_of(tmp_path / "plain"), rtol=1e-4)
    # Layers of the encoder, layers of the decoder, the INR: a graph each for the first size, one for all others, and one of the
    # INR for all other phases: each of the four steps has its own.
    assert 6 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 7


def test_compiled_teachers_say_the_same(teachers: list[TeacherConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, fullgraph=True, backend="eager"))
    plain, compiled, images = Teachers(teachers), Teachers(teachers), torch.rand(2, 3, 32, 32)
    compiled.compile()
    for one, other in zip(plain(images, (4, 4)), compiled(images, (4, 4)), strict=True):
        torch.testing.assert_close(one.sequence, other.sequence)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_what_is_predicted_becomes_pictures_numbered_as_in_the_split(tmp_path: Path) -> None:
    module, images = Pretraining(TINY), loader(5, 3)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "000007.png").touch()  # of an earlier call
    trainer(tmp_path, default_root_dir=tmp_path, callbacks=[PictureWriter()]).predict(module, images, return_predictions=False)
    drawn = torch.cat([module.net.reconstruct(batch["image"] / 255) for batch in images])
    files = sorted((tmp_path / "predictions").iterdir())
    assert [file.name for file in files] == [f"00000{number}.png" for number in range(5)]
    for file, picture in zip(files, to_uint8(drawn), strict=True):
        assert (torchvision.io.decode_image(str(file)).int() - picture.int()).abs().max() <= 1  # halves may fall either way


def test_the_students_whole_pass_is_one_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = HUVR(TINY)

    def student(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = net.encode(images)
        decoded, taps = net.decoder(net.bottleneck.expand(net.compress(encoded)), taps=(1,))
        return net.paint(decoded), encoded.cls, taps[1].patches

    images = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(student, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), student(images))


def test_activations_are_computed_again_only_on_request_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    block = type(HUVR(TINY).encoder.vit.blocks[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))  # type: ignore[func-returns-value]
    kept, seen = losses_of(tmp_path / "kept"), len(calls)
    again = losses_of(tmp_path / "again", checkpoint_activations=True)
    np.testing.assert_allclose(again, kept, rtol=1e-6)
    assert len(calls) - seen == seen + 4 * TINY.depth


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(HuvrError, match="decoder_tap 3: the decoder has layers 1 to 2"):
        Pretraining(TINY, decoder_tap=3)
    with pytest.raises(HuvrError, match=r"phase_jitter 0\.6: expected 0 to 0\.5"):
        Pretraining(TINY, phase_jitter=0.6)
    with pytest.raises(HuvrError, match=r"lr 0\.0: expected a positive number"):
        Pretraining(TINY, lr=0.0)
    with pytest.raises(HuvrError, match=r"warmup 5: expected a share of the steps, 0 to 1"):
        Pretraining(TINY, warmup=5)
    with pytest.raises(HuvrError, match=r"betas \(0\.9, 1\.0\): expected two numbers"):
        Pretraining(TINY, betas=(0.9, 1.0))
    with pytest.raises(HuvrError, match=r"weight_decay -1: expected 0 or more"):
        Pretraining(TINY, weight_decay=-1)
    with pytest.raises(HuvrError, match=r"seed -1: expected 0 or more"):
        Pretraining(TINY, seed=-1)
    with pytest.raises(
        HuvrError, match=r"^encoder 'deit_tiny_distilled_patch16_224' is not a timm ViT that takes any image size .*$"
    ):
        Pretraining(HUVRConfig(**{**asdict(TINY), "encoder": "deit_tiny_distilled_patch16_224"}))
    with pytest.raises(HuvrError, match="4x4 pixels are smaller than a patch of 8"):
        trainer(tmp_path).fit(Pretraining(TINY), loader(side=4))


def test_a_checkpoint_of_a_network_with_other_heads_is_refused(tmp_path: Path) -> None:
    """Which no shape of a tensor tells."""
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(Pretraining(TINY, pictures_every=0), loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    other = Pretraining(replace(TINY, heads=1), pictures_every=0)
    with pytest.raises(HuvrError, match="ckpt_path: another network than net: heads is 3, not 1"):
        trainer(tmp_path).validate(other, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
