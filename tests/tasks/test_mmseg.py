"""The frozen encoder as a backbone of mmsegmentation, where that is installed, and what stands in for mmcv's operators."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import huvr
from huvr.errors import HuvrError
from huvr.model import HUVR
from huvr.tasks.base import EncoderConfig
from huvr.tasks.segmentation import Segmentation, scores

pytest.importorskip("mmseg", reason="the extra mmseg is not installed", exc_type=ImportError)
backbones, ops, mmengine = map(import_module, ("huvr.tasks.mmseg", "huvr.tasks.mmseg.ops", "mmengine"))
registry, structures, evaluation = map(import_module, ("mmseg.registry", "mmseg.structures", "mmseg.evaluation"))

CONFIG = Path(__file__).parents[2] / "configs" / "mmseg" / "upernet_ade20k.py"
PREPARED = {"type": "SegDataPreProcessor", "mean": [0, 0, 0], "std": [255, 255, 255], "bgr_to_rgb": True, "size": (32, 32)}


@pytest.fixture(scope="module", autouse=True)
def _scope() -> None:
    """What a runner of mmengine does for a config of mmsegmentation: names are looked up there."""
    mmengine.registry.init_default_scope("mmseg")


@pytest.fixture(scope="module")
def deep(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved network of as many blocks as a ViT-B has."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("deep") / "net"
    HUVR(replace(huvr.load(encoder).config, depth=12)).save(folder)
    return str(folder)


def segmenter(encoder: str) -> Any:
    head = {"type": "FCNHead", "in_channels": 48, "channels": 8, "num_convs": 1, "num_classes": 4, "norm_cfg": {"type": "BN"}}
    backbone = {"type": "HUVRBackbone", "source": encoder}
    parts = {"data_preprocessor": PREPARED, "backbone": backbone, "decode_head": head, "test_cfg": {"mode": "whole"}}
    return registry.MODELS.build({"type": "EncoderDecoder", **parts})


def batch(side: int = 32, classes: int = 4) -> dict[str, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for _ in range(2):
        inputs.append(torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8))
        truth = {"data": torch.randint(0, classes, (1, side, side), generator=generator)}
        shapes = {"img_shape": (side, side), "ori_shape": (side, side)}
        samples.append(structures.SegDataSample(metainfo=shapes, gt_sem_seg=mmengine.structures.PixelData(**truth)))
    return {"inputs": inputs, "data_samples": samples}


def step(model: Any, data: dict[str, list[Any]]) -> tuple[dict[str, float], set[str]]:
    """The losses of one step of training, and the parameters that it changes."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = model.train().train_step(data, mmengine.optim.OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    return {name: value.item() for name, value in losses.items()}, changed


def test_a_head_of_mmseg_trains_and_the_encoder_does_not(encoder: str) -> None:
    model = segmenter(encoder)
    network = model.backbone.encoder.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses, changed = step(model, batch())
    assert np.isfinite(losses["loss"])
    assert changed == {name for name, _ in model.named_parameters()} >= {"decode_head.conv_seg.weight"}
    assert {name.split(".")[0] for name in model.state_dict()} == {"decode_head"}
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(value.requires_grad or value.grad is not None for value in network.parameters())


def test_upernet_by_the_shipped_config(deep: str) -> None:
    pytest.importorskip("pkg_resources", reason="mmengine finds mmsegmentation's configs with setuptools below 82")
    config = mmengine.Config.fromfile(CONFIG)
    assert config.model.decode_head.in_channels == [768] * 4
    assert (config.model.decode_head.type, config.model.decode_head.num_classes) == ("UPerHead", 150)
    config.model.backbone.source = deep
    config.model.data_preprocessor |= {"size": (32, 32), "test_cfg": {"size_divisor": 8}}
    config.model.decode_head |= {"in_channels": [48] * 4, "channels": 8}
    config.model.auxiliary_head |= {"in_channels": 48, "channels": 8}
    config.model.test_cfg |= {"crop_size": (32, 32), "stride": (24, 24)}
    model = mmengine.model.revert_sync_batchnorm(registry.MODELS.build(config.model))
    losses, changed = step(model, batch(classes=150))
    assert losses.keys() >= {"decode.loss_ce", "aux.loss_ce"}
    assert np.isfinite(losses["loss"])
    pyramid = {"upsample_4x.0.weight", "upsample_4x.1.weight", "upsample_4x.3.weight", "upsample_2x.0.weight"}
    assert changed >= {f"backbone.pyramid.{name}" for name in pyramid}
    predicted = model.eval().test_step(batch(side=44))  # neither a whole number of patches nor of windows
    assert predicted[0].pred_sem_seg.data.shape == (1, 44, 44)


@pytest.mark.parametrize("out_indices", [None, (2, 5, 8, -1)])
def test_a_pyramid_has_4_2_1_and_half_a_place_per_patch(deep: str, out_indices: tuple[int, ...] | None) -> None:
    backbone = backbones.HUVRBackbone(source=deep, out_indices=out_indices, pyramid=True, norm_cfg={"type": "BN"})
    maps = backbone(torch.rand(1, 3, 32, 48))
    assert [each.shape for each in maps] == [(1, 48, 16, 24), (1, 48, 8, 12), (1, 48, 4, 6), (1, 48, 2, 3)]
    assert backbone.out_channels == [48] * 4


def test_several_layers_are_those_of_the_blocks_from_one_pass(deep: str) -> None:
    backbone = backbones.HUVRBackbone(source=deep, out_indices=(3, 5, -5, -1), stored="fp16")
    network, images = backbone.encoder.network, torch.rand(2, 3, 32, 48)
    seen: dict[int, Any] = {}
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda _, __, out, number=number: seen.setdefault(number, []).append(out))
    maps = backbone(images)
    assert [len(outputs) for outputs in seen.values()] == [1] * 12
    for number, found in zip((3, 5, 7, 11), maps, strict=True):
        tokens = network.norm(seen[number][0])[:, network.num_prefix_tokens :]
        torch.testing.assert_close(found, tokens.half().float().transpose(1, 2).reshape(2, 48, 4, 6))
    assert backbone.out_channels == [48] * 4
    assert not any(each.requires_grad for each in maps)


def test_the_one_map_is_that_of_the_tokens_asked_for(encoder: str) -> None:
    model, images = huvr.load(encoder), torch.rand(2, 3, 32, 48)
    (found,) = backbones.HUVRBackbone(source=encoder, tokens="tintok")(images)
    with torch.no_grad():
        wanted = model.compress(model.encode(images)).map
    torch.testing.assert_close(found, wanted.half().float())


def test_an_image_is_seen_as_huvr_sees_it(encoder: str) -> None:
    """mmsegmentation reads BGR from 0 to 255, and pads what it tests on."""
    model, picture = segmenter(encoder), torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    inputs = model.data_preprocessor({"inputs": [picture], "data_samples": batch()["data_samples"][:1]})["inputs"]
    with torch.no_grad():
        wanted = huvr.load(encoder).encode(picture.flip(0)[None] / 255).map
    torch.testing.assert_close(model.backbone(inputs)[0], wanted.half().float())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "nowhere"}, "nowhere"),
        ({"source": "timm:vit_nothing"}, "no timm model"),
        ({"out_indices": (0, 12)}, "layer 12: .* has 12, 0 to 11"),
        ({"out_indices": ()}, "one layer or more"),
        ({"out_indices": (5, 3)}, "in order"),
        ({"out_indices": (11, -1)}, "none twice"),
        ({"out_indices": (3, 11), "pyramid": True}, "1 map or of 4"),
        ({"out_indices": (3,), "layer": 3}, "give one of them"),
        ({"out_indices": (3,), "tokens": "tintok"}, "tintok tokens come from the last layer"),
        ({"tokens": "pca4"}, "choose standard, tintok or decoder"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_says_so(deep: str, options: dict[str, Any], words: str) -> None:
    source = {} if not options or "source" in options else {"source": deep}
    with pytest.raises(HuvrError, match=words) as raised:
        registry.MODELS.build({"type": "HUVRBackbone", **source, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.randn(1, 3, 32, 32), r"expected \[0, 1\]: model.data_preprocessor takes mean"),
        (torch.full((1, 3, 32, 32), 255.0), "images from 255 to 255"),
        (torch.rand(1, 3, 32, 36), r"32x36 pixels, expected multiples of the patch, 8x8: .*size_divisor=8"),
    ],
)
def test_images_that_do_not_fit_say_so(encoder: str, images: torch.Tensor, words: str) -> None:
    with pytest.raises(HuvrError, match=words) as raised:
        backbones.HUVRBackbone(source=encoder)(images)
    assert "\n" not in str(raised.value)


def test_the_stand_in_is_mmcv_ops_and_has_nothing_else() -> None:
    assert sys.modules["mmcv.ops"] is ops
    from mmcv.ops import point_sample, sigmoid_focal_loss

    assert (point_sample, sigmoid_focal_loss) == (ops.point_sample, ops.sigmoid_focal_loss)
    with pytest.raises(ModuleNotFoundError, match=r"mmcv\.ops\.CrissCrossAttention is a compiled operator"):
        from mmcv.ops import CrissCrossAttention  # noqa: F401
    assert not hasattr(ops, "__path__")


def test_compiled_operators_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = object()
    monkeypatch.setitem(sys.modules, "mmcv.ops", compiled)  # type: ignore[arg-type]
    monkeypatch.setattr(ops, "find_spec", lambda name: name == "mmcv._ext")
    ops.stand_in()
    assert sys.modules["mmcv.ops"] is compiled


def test_point_sample_between_the_pixels() -> None:
    picture = torch.tensor([[[[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]]])  # 10 y + x
    points = torch.tensor([[[0.5, 0.25], [0.5, 0.5], [5 / 6, 0.75], [1 / 3, 0.25]]])  # x, y; the middle of a pixel is at 1/6, 1/4
    torch.testing.assert_close(ops.point_sample(picture, points), torch.tensor([[[1.0, 6.0, 12.0, 0.5]]]))
    corners = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]])
    torch.testing.assert_close(ops.point_sample(picture, corners, align_corners=True), torch.tensor([[[0.0, 12.0, 6.0]]]))
    grid = torch.rand(2, 4, 5, 2)
    pictures = torch.rand(2, 3, 6, 7)
    wanted = F.grid_sample(pictures, grid * 2 - 1, mode="nearest", align_corners=False)
    assert torch.equal(ops.point_sample(pictures, grid, mode="nearest"), wanted)


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss_is_the_formula(weighted: bool) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 3, (6, 4)), np.array([0, 1, 2, 3, 3, 4 - weighted])  # 4 is the background
    weight = generator.random(4) if weighted else np.ones(5)
    gamma, alpha = 1.5, 0.3
    p = 1 / (1 + np.exp(-logits))
    right = labels[:, None] == np.arange(4)
    wanted = (
        np.where(right, -alpha * (1 - p) ** gamma * np.log(p), -(1 - alpha) * p**gamma * np.log(1 - p)) * weight[labels, None]
    )
    given = [torch.tensor(logits), torch.tensor(labels), gamma, alpha, torch.tensor(weight) if weighted else None]
    for reduction, value in {"none": wanted, "sum": wanted.sum(), "mean": wanted.sum() / 6}.items():
        np.testing.assert_allclose(ops.sigmoid_focal_loss(*given, reduction), value, rtol=1e-9)


def test_focal_loss_of_mmseg_is_the_same_by_the_stand_in_as_by_its_own_formula() -> None:
    focal = import_module("mmseg.models.losses.focal_loss")
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 4])
    targets = F.one_hot(labels, 5)[:, :4]
    options = {"gamma": 1.5, "alpha": 0.3, "class_weight": [1.0, 2.0, 0.5, 1.0], "reduction": "mean"}
    by_stand_in = focal.sigmoid_focal_loss(logits, labels, targets, **options)
    torch.testing.assert_close(by_stand_in, focal.py_sigmoid_focal_loss(logits, targets, **options))


def test_our_scores_are_those_of_mmseg(encoder: str) -> None:
    """Of images of several sizes, with pixels that do not count, a class that is nowhere, and one that is only predicted."""
    ours = Segmentation(EncoderConfig(encoder), classes=6)
    theirs = evaluation.IoUMetric(ignore_index=255)
    theirs.dataset_meta = {"classes": ours.names}
    generator = torch.Generator().manual_seed(0)
    for height, width in ((20, 30), (31, 17), (8, 8)):
        truth = torch.randint(0, 4, (height, width), generator=generator)
        wrong = torch.randint(0, 5, (height, width), generator=generator)
        guess = torch.where(torch.rand(height, width, generator=generator) < 0.6, truth, wrong)
        truth[torch.rand(height, width, generator=generator) < 0.2] = 255
        ours.confusion.update(guess[None], ours.read_target(truth, "a mask")[None])
        theirs.process({}, [{"pred_sem_seg": {"data": guess[None]}, "gt_sem_seg": {"data": truth[None]}}])
    miou, accuracy, per_class = scores(ours.confusion.compute())
    areas = theirs.total_area_to_metrics(*(sum(area) for area in zip(*theirs.results, strict=True)))
    np.testing.assert_allclose(per_class, 100 * areas["IoU"], rtol=1e-6)  # nan where it is nan
    np.testing.assert_allclose(accuracy, 100 * areas["aAcc"], rtol=1e-6)
    found = theirs.evaluate(size=3)
    assert (round(miou.item(), 2), round(accuracy.item(), 2)) == pytest.approx((found["mIoU"], found["aAcc"]), abs=1e-3)
    assert per_class.isnan().tolist() == [False] * 5 + [True]
    assert per_class[4] == 0


class Bad:
    """Pickles as a call of ``getattr`` that no history needs."""

    def __reduce__(self) -> Any:
        return getattr, (mmengine.logging.HistoryBuffer, "__init__")


def test_checkpoints_of_mmengine_are_read_and_nothing_in_them_runs(tmp_path: Path) -> None:
    hub = mmengine.logging.MessageHub("kept")
    for value in (1.0, 3.0):
        hub.update_scalar("train/loss", value)
    hub.update_info("best", np.float64(3))
    torch.save({"message_hub": hub.state_dict(), "weights": torch.ones(2)}, tmp_path / "kept.pth")
    kept = mmengine.runner.load_checkpoint(torch.nn.Identity(), str(tmp_path / "kept.pth"))["message_hub"]
    assert kept["log_scalars"]["train/loss"].mean() == 2
    assert kept["runtime_info"]["best"] == 3
    torch.save({"message_hub": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match="asks for __init__"):
        torch.load(tmp_path / "bad.pth")
