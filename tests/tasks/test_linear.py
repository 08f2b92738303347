"""Linear classification with the encoder in the loop: many heads as if alone, its two protocols, and mistakes."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from known_features import COLOURS
from torch import nn
from torch.nn import functional as F

from huvr.cli import main
from huvr.errors import HuvrError
from huvr.model import HUVR
from huvr.tasks.augmented import Augmented
from huvr.tasks.base import EncoderConfig, FrozenEncoder
from huvr.tasks.features import Features
from huvr.tasks.linear import RATES, Linear
from huvr.tasks.linear_heads import Feature, Heads
from huvr.weights import load

CONFIGS = Path(__file__).parents[2] / "configs" / "probe"
SMALL = {"resize": 34, "crop": 32, "workers": 0, "batch_size": 6}
COMMAND = ["--data.root", "pictures", "--run", "there", *(f"--data.{name}={value}" for name, value in SMALL.items())]


def trained(features: torch.Tensor, labels: torch.Tensor, rates: tuple[float, ...], classes: int, steps: int = 60) -> Heads:
    """Heads after SGD over pieces of 32, the learning rate falling along a cosine."""
    torch.manual_seed(0)
    heads = Heads(features.shape[1], classes, rates)
    optimizer = torch.optim.SGD(heads.parameters(), max(rates), momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        piece = torch.arange(32 * step, 32 * (step + 1)) % len(features)
        optimizer.zero_grad()
        heads.total(heads.losses(features[piece], labels[piece])).backward()
        optimizer.step()
        cosine.step()
    return heads


def test_the_heads_of_a_sweep_are_those_trained_alone() -> None:
    torch.manual_seed(1)
    features, labels = torch.randn(300, 10, dtype=torch.float64), torch.randint(5, (300,))
    rates = tuple(10 * rate for rate in RATES)
    assert len(RATES) == 13
    torch.set_default_dtype(torch.float64)
    try:
        together = trained(features, labels, rates, 5)
        torch.manual_seed(0)
        first = Heads(10, 5, rates).linear  # as the sweep began
        for number, rate in enumerate(rates):
            alone = nn.Linear(10, 5)
            mine = slice(5 * number, 5 * (number + 1))
            alone.load_state_dict({"weight": first.weight[mine], "bias": first.bias[mine]})
            optimizer = torch.optim.SGD(alone.parameters(), rate, momentum=0.9)
            for step in range(60):
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / 60)) / 2
                piece = torch.arange(32 * step, 32 * (step + 1)) % 300
                optimizer.zero_grad()
                F.cross_entropy(alone(features[piece]), labels[piece]).backward()
                optimizer.step()
            torch.testing.assert_close(together(features)[:, number], alone(features), rtol=1e-9, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def test_features_that_hold_the_label_give_all_and_others_chance() -> None:
    torch.manual_seed(0)
    labels = torch.arange(1000) % 10
    telling, empty = F.one_hot(labels, 16) + 0.1 * torch.randn(1000, 16), torch.randn(1000, 16)
    for features, expected, slack in ((telling, 100, 0), (empty, 10, 5)):
        heads = trained(features[:500], labels[:500], (0.1, 1.0), 10, steps=150)
        right = (heads(features[500:]).argmax(2) == labels[500:, None]).float().mean(0)
        assert (100 * right - expected).abs().max() <= slack


def test_a_head_that_leaves_the_range_of_numbers_harms_no_other() -> None:
    torch.manual_seed(0)
    features, labels, heads = torch.randn(64, 4), torch.randint(3, (64,)), Heads(4, 3, (10.0, 0.1))
    gradients = []
    for value in (1.0, math.nan):
        heads.linear.weight.data[:3] = value
        heads.zero_grad()
        heads.total(heads.losses(features, labels)).backward()
        gradients.append(heads.linear.weight.grad[3:].clone())
    assert torch.equal(*gradients)


def test_the_feature_is_that_of_timm(encoder: str, tmp_path: Path) -> None:
    """cls tokens of the last blocks and the mean patch of the last, against timm's own intermediate features."""
    torch.manual_seed(0)
    HUVR(replace(load(encoder).config, depth=3, registers=2)).save(tmp_path / "deep")
    deep = FrozenEncoder(EncoderConfig(str(tmp_path / "deep")))
    images = torch.rand(2, 3, 32, 32)
    network = deep.network
    with torch.no_grad():
        found = network.forward_intermediates(
            (images - deep.mean) / deep.std, 2, norm=True, intermediates_only=True, return_prefix_tokens=True
        )
    expected = torch.cat([found[0][1][:, 0], found[1][1][:, 0], found[1][0].flatten(2).mean(2)], 1)
    feature = Feature(deep, 2, True)
    assert feature.dim == expected.shape[1] == 3 * 48
    torch.testing.assert_close(feature(images), expected, rtol=1e-2, atol=2e-3)  # ours are rounded to fp16
    assert torch.equal(Feature(deep, 1, False)(images), deep(images).cls)
    assert not any(block._forward_hooks for block in network.blocks)
    with pytest.raises(HuvrError, match=r"blocks 4: .*deep has 3"):
        Feature(deep, 4, True)
    with pytest.raises(HuvrError, match="only standard cls tokens"):
        Feature(FrozenEncoder(EncoderConfig(str(tmp_path / "deep"), "tintok")), 2, True)


@pytest.mark.parametrize("tokens", ["standard", "pca3"])
def test_the_sweep_runs_and_tells_of_every_head(tokens: str, encoder: str, pictures: Path) -> None:
    options = ["--encoder", encoder, "--tokens", tokens, "--trainer.max_epochs", "4", *COMMAND]
    assert main(["probe", "--task", "imagenet", *options, "--data.select_share", "0.2", "--model.rates", "[1e-5, 5]"]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert record["metrics"] == {"top1": 100, "mean_per_class": 100}  # the colours of the pictures are easily told apart
    assert record["heads"].keys() == {"1e-05", "5"}
    assert record["heads"]["5"] == 100 > record["heads"]["1e-05"]
    assert record["best_rate"] == 5
    assert record["data"] == {
        "train": "pictures (train), 14 images", "select": "pictures (train), 4 images", "test": "pictures (val), 6 images"
    }  # fmt: skip
    dim = 3 if tokens == "pca3" else 48
    assert (record["bytes_per_image"], record["bytes_of_feature"]) == (17 * 2 * dim, 2 * 2 * dim)
    assert record["top1_per_class"] == dict.fromkeys(COLOURS, 100)
    assert Path("there/confusion.png").is_file()


def test_the_released_protocol_runs(encoder: str, pictures: Path) -> None:
    options = ["--encoder", encoder, "--config", "probe/imagenet_released.yaml", *COMMAND]
    assert main(["probe", "--task", "imagenet", *options, "--model.rates", "[5]"]) == 0
    assert json.loads(Path("there/record.json").read_text())["metrics"]["top1"] == 100
    tensors = torch.load("there/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert tensors["heads.linear.weight"].shape == (3, 48)
    assert {"heads.norm.running_mean", "heads.norm.running_var"} < tensors.keys()
    assert not any(name.startswith("encoder") or "norm.weight" in name for name in tensors)


def test_the_protocols_hold_the_figures_of_their_sources() -> None:
    sweep, released = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("imagenet", "imagenet_released"))
    assert tuple(sweep["model"]["init_args"].pop("rates")) == pytest.approx(RATES)
    assert sweep["model"]["init_args"] == {"momentum": 0.9, "blocks": 1, "avgpool": True}
    assert sweep["data"]["init_args"] == {"select_share": 0, "resize": 256, "crop": 224, "scale": [0.08, 1.0], "batch_size": 128}
    assert sweep["trainer"]["max_epochs"] == 10
    model = {"rates": [0.1], "momentum": 0.0, "blocks": 1, "avgpool": False, "batch_norm": True, "steps": [7, 0.1]}
    assert released["model"]["init_args"] == model
    assert released["data"]["init_args"] == {"select_share": 0, "resize": 256, "crop": 256, "scale": [0.8, 1.0], "batch_size": 64}
    assert (released["trainer"]["max_epochs"], released["trainer"]["sync_batchnorm"]) == (15, True)
    heads = Heads(4, 3, (0.1,), batch_norm=True)
    assert isinstance(heads.norm, nn.BatchNorm1d)
    assert (heads.norm.eps, heads.norm.affine) == (1e-6, False)


class Rates(Linear):
    """Remembers the learning rate of every step."""

    def on_train_start(self) -> None:
        self.used: list[float] = []

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        self.used.append(self.optimizers().param_groups[0]["lr"])


def test_learning_rates_follow_batch_and_schedule(encoder: str, pictures: Path, quiet: Any) -> None:
    data = Augmented("pictures", **SMALL)
    cosine = Rates(EncoderConfig(encoder), rates=(0.1, 0.3))
    quiet(max_epochs=4).fit(cosine, datamodule=data)
    peak = 0.3 * 6 / 256
    np.testing.assert_allclose(cosine.used, [peak * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)], rtol=1e-6)
    stairs = Rates(EncoderConfig(encoder), rates=(0.3,), momentum=0.0, batch_norm=True, steps=(2, 0.1))
    quiet(max_epochs=4, accumulate_grad_batches=1).fit(stairs, datamodule=Augmented("pictures", **SMALL))
    np.testing.assert_allclose(stairs.used, [peak] * 6 + [peak / 10] * 6)


def test_what_is_held_out_is_not_trained_on(pictures: Path) -> None:
    data = Augmented("pictures", select_share=0.3, **SMALL)
    data.setup()
    train, select = (rows.numbers.tolist() for rows in (data.train_rows, data.val_rows))
    assert len(select) == round(0.3 * 18)
    assert sorted(train + select) == list(range(18))
    again = Augmented("pictures", select_share=0.3, **SMALL | {"seed": 7})
    again.setup()
    assert again.val_rows.numbers.tolist() == select
    assert sum(len(batch["label"]) for batch in data.val_dataloader()) == len(select)


def test_unreadable_images_are_left_out(encoder: str, pictures: Path, quiet: Any) -> None:
    for number in range(2):
        Path(f"pictures/val/red/{number}.png").write_text("no image")
    task, data = Linear(EncoderConfig(encoder), rates=(5.0,)), Augmented("pictures", **SMALL | {"batch_size": 2})
    trainer = quiet(max_epochs=5)
    with pytest.warns(UserWarning, match="red/1.png"):
        trainer.fit(task, datamodule=data)
    (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    assert metrics["top1"] == 100
    assert task.details["top1_per_class"] == {"blue": 100, "green": 100, "red": None}


SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from huvr.tasks.accuracy import Accuracy
from huvr.tasks.augmented import Augmented
from huvr.tasks.base import EncoderConfig
from huvr.tasks.linear import Linear

class Told(Linear):
    def on_validation_epoch_end(self):
        seen = int(self._right[-1])
        super().on_validation_epoch_end()
        accuracy = Accuracy(3, self.device)
        accuracy.add(torch.eye(3)[:1 + self.global_rank], torch.tensor([0, 0])[:1 + self.global_rank])
        accuracy.reduce(self.trainer.strategy)
        told = [seen, self.details["heads"], int(self.best), accuracy.images.tolist(), accuracy.confusion.tolist()]
        Path(f"told{self.global_rank}").write_text(repr(told))

if __name__ == "__main__":
    torch.set_num_threads(1)
    task = Told(EncoderConfig(sys.argv[1]), rates=(1e-3, 5.0))
    data = Augmented("pictures", resize=34, crop=32, workers=0, batch_size=3)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=6, check_val_every_n_epoch=6, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(task, datamodule=data)
"""


def test_two_processes_count_each_image_once(encoder: str, pictures: Path) -> None:
    """Of five images one process has three, the other two; both know the sum."""
    Path("pictures/val/red/0.png").unlink()
    Path("script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py", encoder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (ast.literal_eval(Path(f"told{rank}").read_text()) for rank in range(2))
    assert (first[0], second[0]) == (3, 2)
    assert first[1:] == second[1:]
    assert first[1]["5"] == 100
    assert first[2:] == [1, [3, 0, 0], [[2, 1, 0], [0, 0, 0], [0, 0, 0]]]


def test_mistakes_are_one_line(encoder: str, pictures: Path, quiet: Any) -> None:
    config = EncoderConfig(encoder)
    for options, complaint in (
        ({"rates": ()}, r"rates \(\): expected one positive"),
        ({"rates": (0.1, 0.1)}, "each once"),
        ({"batch_norm": True}, "batch_norm: with one learning rate only, not with 13"),
        ({"blocks": 0}, "blocks 0"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"steps": (0, 0.1)}, "expected whole epochs"),
        ({"blocks": 2}, "blocks 2: .* has 1"),
    ):
        with pytest.raises(HuvrError, match=complaint):
            Linear(config, **options)  # type: ignore[arg-type]
    for options, complaint in (
        ({"root": ""}, "which data"),
        ({"select_share": 1}, "select_share 1"),
        ({"crop": 64}, "expected 1 <= crop <= resize"),
        ({"test_images": 0}, "expected 1 or more"),
        ({"train_split": "val"}, "train_split and test_split are both 'val'"),
        ({"root": "photos"}, r"photos \(train\): no labels"),
        ({"root": "one"}, r"one \(train\): 1 class; a classifier needs 2 or more"),
        ({"root": "other"}, r"other \(val\): classes that other \(train\) lacks: red"),
    ):
        with pytest.raises(HuvrError, match=complaint):
            Augmented(**{"root": "pictures"} | SMALL | options).setup()  # type: ignore[arg-type]
        make_others(pictures)
    with pytest.raises(HuvrError, match="batch_size 64 on 1 device"):
        quiet(max_epochs=1).fit(Linear(config), datamodule=Augmented("pictures", **SMALL | {"batch_size": 64}))
    with pytest.raises(HuvrError, match=r"needs huvr.tasks.augmented.Augmented, not Features"):
        quiet(max_epochs=1).fit(Linear(config), datamodule=Features("pictures", resize=34, crop=32, workers=0))
    with pytest.raises(HuvrError, match="training without an end"):
        quiet(max_epochs=-1).fit(Linear(config), datamodule=Augmented("pictures", **SMALL))


def make_others(pictures: Path) -> None:
    """A folder of one class, and one whose last class is in the held-out split only."""
    for root, learnt, asked in (("one", ["red"], ["red"]), ("other", ["blue", "green"], list(COLOURS))):
        for split, classes in (("train", learnt), ("val", asked)):
            for name in classes:
                folder = Path(root, split, name)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "0.png").write_bytes((pictures / split / name / "0.png").read_bytes())


def test_a_longer_training_that_goes_on_has_its_own_cosine(encoder: str, pictures: Path) -> None:
    probe = ["probe", "--task", "imagenet", "--encoder", encoder, *COMMAND, "--model.rates", "[0.1]"]
    assert main([*probe, "--trainer.max_epochs", "1"]) == 0
    assert main([*probe, "--trainer.max_epochs", "2", "--ckpt_path", "auto"]) == 0
    content = torch.load("there/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 0


@pytest.mark.parametrize("steps", [[], ["--model.steps", "[1, 0.5]"]])
def test_a_resumed_probe_follows_the_options_it_is_given(steps: list[str], encoder: str, pictures: Path) -> None:
    probe = ["probe", "--task", "imagenet", "--encoder", encoder, *COMMAND, *steps]
    assert main([*probe, "--model.rates", "[0.1]", "--trainer.max_epochs", "1"]) == 0
    changed = ["--model.rates", "[0.8]", "--model.momentum", "0.5", "--ckpt_path", "auto"]
    assert main([*probe, *changed, "--trainer.max_epochs", "2"]) == 0
    (group,) = torch.load("there/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["momentum"]) == (pytest.approx(0.8 * 6 / 256), 0.5)
    assert group["lr"] == pytest.approx(0.8 * 6 / 256 * 0.5**2 if steps else 0)  # after both epochs


def test_a_schedule_of_another_kind_is_one_line(encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = ["probe", "--task", "imagenet", "--encoder", encoder, *COMMAND, "--model.rates", "[0.1]", "--trainer.max_epochs"]
    assert main([*probe, "1"]) == 0
    content = torch.load("there/checkpoints/last.ckpt", weights_only=True)
    del content["lr_schedulers"][0]["lr_lambdas"]  # as StepLR had it
    torch.save(content, "there/checkpoints/last.ckpt")
    assert main([*probe, "2", "--ckpt_path", "auto"]) == 2
    assert "ckpt_path: of a huvr whose schedule was of another kind: begin anew in another --run" in capsys.readouterr().err
    test = ["test", "--config", "there/config_probe.yaml", "--ckpt_path", "there/checkpoints/last.ckpt", "--run", "elsewhere"]
    assert main(test) == 0  # what was learned is as good as ever


def test_without_a_validation_no_rate_is_chosen(encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--task", "imagenet", "--encoder", encoder, *COMMAND, "--trainer.max_steps", "2"]) == 2
    assert "no learning rate was chosen, since training ended before a validation" in capsys.readouterr().err
    assert not Path("there/record.json").exists()


def test_a_head_is_not_tested_on_the_tokens_of_another_encoder(
    encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(encoder, "net")
    probe = ["probe", "--task", "imagenet", "--encoder", "net", *COMMAND, "--model.rates", "[0.1]", "--trainer.max_epochs", "1"]
    assert main(probe) == 0
    model = load("net")
    with torch.no_grad():
        model.encoder.vit.norm.bias += 1
    model.save("net")
    assert main([*probe, "--ckpt_path", "auto"]) == 2
    assert "ckpt_path: trained on other tokens than net gives now" in capsys.readouterr().err
