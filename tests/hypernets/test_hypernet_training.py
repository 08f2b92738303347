"""Training of hyper-networks: every config in small, what is logged and saved, and that each learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_hypernets import CONTINUOUS, HUVR_SHAPE, PAINTERS, TOKENIZER, TRANSFORMER, pictures, tiny
from tiny_hypernets import INR as INR_SHAPE
from torch.utils.data import DataLoader

from huvr.cli import main
from huvr.data.loader import Batch
from huvr.errors import HuvrError
from huvr.hypernets.ginr import GINR
from huvr.hypernets.masking import Masking
from huvr.hypernets.module import HyperNetwork, learning_rate
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.weights import described, load, rebuild
from huvr.metrics import psnr
from huvr.model import HUVR
from huvr.weights import HYPERNET_KEY

CONFIGS = Path(__file__).parents[2] / "configs" / "hypernets"
TOKENS = {
    "tokenizer.image_size": 26, "transformer.width": 32, "transformer.depth": 1, "transformer.heads": 2,
    "transformer.head_width": 8, "transformer.hidden": 32,
}  # fmt: skip
INR = {"inr.width": 16, "inr.depth": 3, "inr.frequencies": 4}
SMALL = {
    "transinr": TOKENS | INR | {"groups": 4},
    "ginr": TOKENS | INR | {"rank": 8},
    "anr": TOKENS | {"instance_tokens": 8, "mlp_depth": 2},
    "minr_transinr": TOKENS | INR | {"groups": 4},
    "minr_ginr": TOKENS | INR | {"rank": 8},
    "minr_mae": {"width": 32, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
}
PARAMETERS = {  # in millions; exactly, in test_hypernets.py and test_masking.py
    "transinr": 44.462851, "ginr": 43.680771, "anr": 54.724099, "minr_transinr": 44.462851, "minr_ginr": 43.680771,
    "minr_mae": 45.944315,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)
    for split, numbers in {"train": range(4), "val": [4]}.items():
        (root / split).mkdir()
        for number in numbers:
            Image.fromarray(pixels[number]).save(root / split / f"{number}.png")
    return root


@pytest.mark.parametrize("name", SMALL)
def test_two_steps_of_each_config(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {f"model.net.{key}": value for key, value in SMALL[name].items()} | {
        "data.root": folder, "data.size": 26, "data.batch_size": 2, "data.workers": 0, "trainer.max_steps": 2,
        "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1, "trainer.accumulate_grad_batches": 1,
    }  # fmt: skip
    assert main(["fit", "--config", f"hypernets/{name}.yaml", *(f"--{key}={value}" for key, value in changes.items())]) == 0
    run = tmp_path / "runs" / name
    net = load(run)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    for key, tensor in net.state_dict().items():
        assert torch.equal(content["state_dict"][f"net.{key}"], tensor), key
    mask = Masking(0.5).masks(pictures(1, 26), [1]) if name == "minr_mae" else None
    assert net.reconstruct(pictures(1, 26), mask=mask).isfinite().all()
    events = EventAccumulator(str(run)).Reload()
    expected = {"train/loss", "train/psnr", "val/psnr", "lr"} | ({"val/psnr_hidden"} if "minr" in name else set())
    assert expected <= {*events.Tags()["scalars"]}
    assert events.Tags()["images"] == (["pictures", "seen"] if "minr" in name else ["pictures"])


@pytest.mark.parametrize("name", SMALL)
def test_the_header_says_how_to_run_it_and_the_size_is_that_of_the_paper(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for words in (f"huvr fit --config hypernets/{name}.yaml ", "Hardware: ", "Time: ", "Metric: ", "Deviations from"):
        assert words in header
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model")
    config = parser.parse_object({"model": yaml.safe_load(text)["model"]})
    with torch.device("meta"):
        model = parser.instantiate_classes(config).model
    assert sum(p.numel() for p in model.parameters()) == round(PARAMETERS[name] * 1e6)


def test_minr_is_that_of_the_paper() -> None:
    for name in ("minr_transinr", "minr_ginr", "minr_mae"):
        settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert settings["model"]["init_args"]["masking"] == {"ratio": 0.75, "cell": 13, "kind": "random"}
        assert settings["data"]["init_args"]["size"] == 14 * 13
        assert settings["trainer"]["max_epochs"] == 400


def loader(count: int = 2) -> DataLoader:
    return DataLoader([{"image": picture} for picture in pictures(count)], batch_size=2)  # type: ignore[arg-type]


def trainer(steps: int) -> Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(max_steps=steps, accelerator="cpu", **off)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*PAINTERS, "MAE"])
def test_each_learns_two_images_by_heart(name: str) -> None:
    net = tiny(name)
    masking = Masking(0.5, 4) if name == "MAE" else None
    module = HyperNetwork(net, masking, lr=1e-2)
    mask = masking.masks(pictures(), [1, 2]) if masking else None

    def error() -> float:
        with torch.no_grad():
            return float(net.loss(net.render(net.encode(pictures(), mask)), pictures(), mask))

    before = error()
    trainer(25).fit(module, loader())
    net.eval()
    assert error() < 0.6 * before


def test_masks_are_new_at_each_access_and_the_same_in_a_second_run() -> None:
    class Remembers(HyperNetwork):
        def seen(self, images: torch.Tensor, stage: str, batch_idx: int) -> tuple[torch.Tensor, torch.Tensor | None]:
            found = super().seen(images, stage, batch_idx)
            masks.append((stage, found[1]))
            return found

    runs = []
    for _ in range(2):
        masks: list[tuple[str, torch.Tensor]] = []
        trainer(4).fit(Remembers(tiny("TransINR"), Masking(0.5, 2)), loader(4), loader())
        runs.append(masks)
    for first, second in zip(*runs, strict=True):
        assert first[0] == second[0]
        assert torch.equal(first[1], second[1])
    drawn = [mask for stage, mask in runs[0] if stage == "val"][1:] + [mask for stage, mask in runs[0] if stage == "train"]
    drawn = [each for mask in drawn for each in mask]
    assert len({each.numpy().tobytes() for each in drawn}) == len(drawn) == 2 * (4 + 2)


def test_what_is_given_back_unchanged_leaves_the_mean_finite() -> None:
    module = HyperNetwork(tiny("MAE"), Masking(0.5, 2))
    module.net.reconstruct = lambda seen, mask: seen  # type: ignore[method-assign]
    module.seen = lambda images, stage, batch_idx: (images, torch.zeros_like(images[:, :1], dtype=torch.bool))  # type: ignore[method-assign]
    (found,) = trainer(1).validate(module, loader(), verbose=False)
    assert found["val/psnr"] == 100


@pytest.mark.parametrize("name", ["TransINR", "GINR"])
def test_the_loss_of_masked_training_is_that_of_all_pixels_of_the_whole_image(name: str) -> None:
    class Remembers(HyperNetwork):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            seen, mask = self.seen(batch["image"], "train", batch_idx)
            assert mask is not None
            assert mask.any()
            with torch.no_grad():
                painted = self.net.reconstruct(seen, mask=mask)
            loss = super().training_step(batch, batch_idx)
            losses.append((loss.item(), (painted - batch["image"]).square().mean().item()))
            return loss

    losses: list[tuple[float, float]] = []
    trainer(2).fit(Remembers(tiny(name), Masking(0.5, 2)), loader(4))
    assert len(losses) == 2
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-5)


def test_masking_serves_huvr_too_and_hides_what_it_should() -> None:
    module = HyperNetwork(tiny("PatchwiseHUVR"), Masking(0.5, 2), lr=1e-3)
    seen, mask = module.seen(pictures(), "val", 0)
    assert mask is not None
    assert torch.equal(seen, pictures() * ~mask)
    trainer(2).fit(module, loader(), loader())


def test_images_without_hidden_pixels_do_not_count() -> None:
    class Hides(Masking):
        """All of the first image of a batch, nothing of the second."""

        def masks(self, images: torch.Tensor, seeds: object) -> torch.Tensor:
            return torch.tensor([True, False])[:, None, None, None].expand(2, 1, *images.shape[2:])

    fit = trainer(1)
    module = HyperNetwork(tiny("TransINR"), Hides())
    (found,) = fit.validate(module, loader(4), verbose=False)
    with torch.no_grad():
        black = module.net.reconstruct(torch.zeros(1, 3, 16, 16))
    expected = torch.stack([psnr(black, pictures(4)[number : number + 1]) for number in (0, 2)]).mean()
    assert found["val/psnr_hidden"] == pytest.approx(float(expected), rel=1e-4)


def test_jitter_paints_between_the_pixels() -> None:
    module = HyperNetwork(tiny("GINR").eval(), jitter="uniform")
    parameters = module.net.encode(pictures())
    module.trainer = trainer(1)
    assert torch.equal(module.painted(parameters, 3), module.painted(parameters, 3))
    assert not torch.equal(module.painted(parameters, 3), module.painted(parameters, 4))
    trainer(1).fit(HyperNetwork(tiny("PatchwiseHUVR"), jitter="uniform"), loader())


def test_schedules() -> None:
    assert [learning_rate("constant", step, 10, 0) for step in range(10)] == [1.0] * 10
    assert [learning_rate("step", step, 10, 0) for step in range(10)] == [1.0] * 8 + [0.1] * 2
    assert [round(learning_rate("cosine", step, 10, 0.2), 3) for step in (0, 1, 2, 6, 10)] == [0, 0.5, 1, 0.5, 0]


@pytest.mark.parametrize("name", [*CONTINUOUS, "MAE", "PatchwiseHUVR"])
def test_a_checkpoint_gives_the_network_back(name: str, tmp_path: Path) -> None:
    net = tiny(name)
    state = {f"net.{key}": tensor for key, tensor in net.state_dict().items()}
    torch.save({HYPERNET_KEY: described(net), "state_dict": state}, tmp_path / "net.ckpt")
    again = load(tmp_path / "net.ckpt")
    assert type(again) is type(net)
    assert not again.training
    assert again.config == net.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


def test_a_huvr_network_is_opened_too(tmp_path: Path) -> None:
    model = HUVR(HUVR_SHAPE)
    model.save(tmp_path / "net")
    net = load(tmp_path / "net")
    assert isinstance(net, PatchwiseHUVR)
    torch.testing.assert_close(net.reconstruct(pictures()), model.eval().reconstruct(pictures()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "os.system"}, "x.ckpt: not the checkpoint of one of the hyper-networks TransINR, GINR, ANR, MAE"),
        ({"config": {"groups": "many"}}, "x.ckpt: not the config of a TransINR"),
        ({"config": {"gruops": 3}}, "x.ckpt: not the config of a TransINR"),
        ({"config": {"groups": 0}}, "x.ckpt: groups 0: expected 1 or more"),
    ],
)
def test_damaged_descriptions(change: dict[str, object], message: str) -> None:
    with pytest.raises(HuvrError, match=message) as error:
        rebuild({HYPERNET_KEY: {"name": "TransINR", "config": {}} | change, "state_dict": {}}, "x.ckpt")
    assert "\n" not in str(error.value)


def test_tensors_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(HuvrError, match=r"x.ckpt: tensors are missing"):
        rebuild({HYPERNET_KEY: described(tiny("GINR")), "state_dict": {}}, "x.ckpt")
    with pytest.raises(HuvrError, match="nowhere: no such file"):
        load("nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "lr 0: expected a positive number"),
        ({"warmup": 2}, "warmup 2"),
        ({"betas": (0.9, 1)}, "betas"),
        ({"weight_decay": -1}, "weight_decay -1"),
    ],
)
def test_numbers_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        HyperNetwork(tiny("GINR"), **options)  # type: ignore[arg-type]


def test_a_masking_ratio_of_one_is_a_mistake_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "hypernets/minr_ginr.yaml", "--data.root", str(folder), "--model.masking.ratio", "1"]) == 2
    assert "masking ratio 1.0: expected 0 to below 1" in capsys.readouterr().err


def test_a_checkpoint_of_other_frequencies_is_refused(tmp_path: Path) -> None:
    """Which no shape of a tensor tells."""
    first = trainer(1)
    first.fit(HyperNetwork(tiny("GINR")), loader())
    first.save_checkpoint(tmp_path / "first.ckpt")
    config = tiny("GINR").config
    other = GINR(TOKENIZER, TRANSFORMER, replace(INR_SHAPE, max_frequency=16.0), rank=config["rank"])
    with pytest.raises(HuvrError, match=r"ckpt_path: another network than net: inr is .*8\.0.*, not .*16\.0"):
        trainer(1).validate(HyperNetwork(other), loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    with pytest.raises(HuvrError, match="ckpt_path: another network than net: name is GINR, not TransINR"):
        trainer(1).validate(HyperNetwork(tiny("TransINR")), loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)


def test_a_resumed_run_follows_the_options_it_is_given_and_drops_what_it_would_have(tmp_path: Path) -> None:
    def trained(steps: int, lr: float = 1e-2, start: Path | None = None) -> Trainer:
        net = GINR(TOKENIZER, replace(TRANSFORMER, dropout=0.3), INR_SHAPE, rank=12)
        fit = trainer(steps)
        fit.fit(HyperNetwork(net, lr=lr, betas=(0.8, 0.9)), loader(), ckpt_path=start, weights_only=True)
        fit.save_checkpoint(tmp_path / f"{steps}-{lr}.ckpt")
        return fit

    torch.manual_seed(0)
    trained(2)
    torch.manual_seed(0)
    whole = trained(4).lightning_module.state_dict()
    torch.manual_seed(99)
    resumed = trained(4, start=tmp_path / "2-0.01.ckpt").lightning_module.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    (group,) = trained(5, lr=0.5, start=tmp_path / "2-0.01.ckpt").optimizers[0].param_groups
    assert (group["lr"], group["initial_lr"], group["betas"]) == (0.5, 0.5, (0.8, 0.9))
