"""Training of a generator: what a checkpoint holds, exact resumption, averaged weights, pictures, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import huvr
from huvr.data import Images
from huvr.errors import HuvrError
from huvr.pretrain import Pretraining
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.module import Generation, trapezoid
from huvr.tasks.generation.sampling import Sampling

Learn = Callable[..., Any]


class Crash(Exception):
    """A machine that goes away."""


class CrashAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Crash


def saving(run: str) -> dict[str, Any]:
    """Options of a trainer that averages weights and saves them at every other step."""
    kept = ModelCheckpoint(run, "{step}", every_n_train_steps=2, save_top_k=-1, monitor=None)
    return {"enable_checkpointing": True, "callbacks": [EMAWeightAveraging(decay=0.8, use_buffers=False), kept]}


def state(run: str, step: int) -> dict[str, Any]:
    found = torch.load(Path(run, f"step={step}.ckpt"), weights_only=True)
    parts = {f"{part}.{name}": value for part in ("state_dict", "current_model_state") for name, value in found[part].items()}
    moments = found["optimizer_states"][0]["state"]
    return parts | {f"moment.{number}.{name}": value for number, each in moments.items() for name, value in each.items()}


@pytest.mark.parametrize(("objective", "accumulate"), [("flow", 1), ("diffusion", 2)])
def test_a_resumed_run_equals_one_that_never_stopped(learn: Learn, pictures: Path, objective: str, accumulate: int) -> None:
    """18 pictures in batches of 4: an epoch has four batches, and step 2 lies in the middle of one."""
    model, options = {"objective": objective, "warmup": 0.2, "decay": 0.5}, {"accumulate_grad_batches": accumulate}
    learn(pictures, 6, model=model, **saving("whole"), **options)
    broken = saving("broken")
    broken["callbacks"].append(CrashAt(3))
    with pytest.raises(Crash):
        learn(pictures, 6, model=model, **broken, **options)
    torch.manual_seed(99)
    learn(pictures, 6, model=model, ckpt_path="broken/step=2.ckpt", **saving("resumed"), **options)
    expected, found = state("whole", 6), state("resumed", 6)
    assert expected.keys() == found.keys()
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not differing
    assert not torch.equal(expected["state_dict.net.out.bias"], state("whole", 2)["state_dict.net.out.bias"])


def test_the_generator_is_the_averaged_network_with_what_it_must_know(learn: Learn, pictures: Path, encoder: str) -> None:
    _, data = learn(pictures, 2, **saving("run/checkpoints"))
    generator, saved = load_generator("run"), state("run/checkpoints", 2)
    assert torch.equal(generator.network.out.weight, saved["state_dict.net.out.weight"])
    assert not torch.equal(generator.network.out.weight, saved["current_model_state.net.out.weight"])
    assert generator.space.plain() == data.space.plain()
    assert generator.space.encoder == encoder


def test_drawing_is_expand_and_render(learn: Learn, pictures: Path, encoder: str) -> None:
    _, data = learn(pictures, 2, **saving("run"))
    generator, model = load_generator("run/step=2.ckpt"), huvr.load(encoder)
    sequence = torch.stack([data.shards.read(number, False)[0] for number in (0, 7)])
    with torch.no_grad():
        drawn = generator.draw(data.space.normalise(sequence))
        expected = model.render(model.expand(huvr.Tokens.from_sequence(sequence, (4, 4)))).clamp(0, 1)
    assert drawn.shape == (2, 3, 32, 32)
    assert torch.allclose(drawn, expected, atol=1e-4)


@pytest.mark.parametrize("global_token", [True, False])
def test_it_learns_the_classes_of_the_pictures(learn: Learn, pictures: Path, global_token: bool) -> None:
    """The velocity's error falls well below that of a network that knows nothing."""
    module, data = learn(pictures, 60, model={"global_token": global_token, "optimizer": "muon"})
    tokens = 17 if global_token else 16
    latents = data.space.normalise(torch.stack([data.shards.read(number, False)[0] for number in range(18)]))
    assert latents.shape == (18, tokens, 8)
    labels = torch.arange(18) // 6
    with torch.no_grad():
        known, ignorant = (
            module.objective.losses(predict, latents, torch.Generator().manual_seed(0))["velocity"]
            for predict in (lambda x, times: module.net(x, times, labels), lambda x, _: torch.zeros_like(x))
        )
    assert known < 0.7 * ignorant


def test_label_dropout(learn: Learn, pictures: Path) -> None:
    module, _ = learn(pictures, 1, model={"label_dropout": 0.25})
    dropped = module._some(torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert set(dropped.tolist()) == {0, 3}
    assert (dropped == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_grids_of_samples_from_always_the_same_noise(learn: Learn, pictures: Path, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    options = {"callbacks": [EMAWeightAveraging(decay=1.0, use_buffers=False)], "log_every_n_steps": 1, "logger": logger}
    learn(pictures, 5, model={"pictures_every": 2, "lr": 0.1}, **options)
    events = EventAccumulator(str(tmp_path)).Reload()
    first, second = events.Images("samples")
    assert (first.step, second.step) == (2, 4)
    assert first.width == first.height == 4 * 34 + 2
    assert first.encoded_image_string == second.encoded_image_string  # an average that began at step 1 and never moves
    assert {"train/loss", "lr"} <= set(events.Tags()["scalars"])


def test_compiled_and_plain_networks_have_the_same_weights(learn: Learn, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(self))
    module, _ = learn(pictures, 1, model={"compile": True})
    assert asked == [module.net]


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (60, 1.0), (80, 0.55), (100, 0.1), (120, 0.1)])
def test_schedule(step: int, share: float) -> None:
    assert trapezoid(step, 100, warmup=0.1, decay=0.4, floor=0.1) == pytest.approx(share)


def test_latents_of_another_encoder_are_refused(learn: Learn, pictures: Path, encoder: str) -> None:
    learn(pictures, 2, **saving("run"))
    model = huvr.load(encoder)
    with torch.no_grad():
        model.bottleneck.down[1].bias += 1
    model.save("other")
    with pytest.raises(HuvrError, match="encoder other: the generator learned TinToks of another network"):
        load_generator("run/step=2.ckpt", "other")
    with pytest.raises(HuvrError, match="encoder other: the generator learned TinToks of another network"):
        learn(pictures, 4, model={"encoder": "other"}, ckpt_path="run/step=2.ckpt", **saving("resumed"))
    with pytest.raises(HuvrError, match="another shape or objective, or learned other latents"):
        learn(pictures, 4, data={"images": 12}, ckpt_path="run/step=2.ckpt", **saving("resumed"))
    model = huvr.load(encoder)
    model.save("moved")
    assert load_generator("run/step=2.ckpt", "moved").space.encoder == encoder
    learn(pictures, 4, model={"encoder": "moved"}, ckpt_path="run/step=2.ckpt", **saving("resumed"))


def test_files_that_are_no_generator(learn: Learn, pictures: Path) -> None:
    torch.save({"state_dict": {}}, "other.ckpt")
    with pytest.raises(HuvrError, match=r"other.ckpt: not the checkpoint of a generator"):
        load_generator("other.ckpt")
    with pytest.raises(HuvrError, match="generator nowhere: no such file or folder"):
        load_generator("nowhere")
    with pytest.raises(HuvrError, match="no checkpoints in this folder"):
        load_generator(pictures)


def test_a_generator_needs_latents_and_latents_a_generator(quiet: Any, learn: Learn, pictures: Path, encoder: str) -> None:
    with pytest.raises(HuvrError, match="a generator learns from latents"):
        quiet(max_steps=1).fit(Generation(encoder), Images(str(pictures), size=32, batch_size=2, workers=0))
    _, data = learn(pictures, 1)
    other = type(data)(root=str(pictures), size=32)
    with pytest.raises(HuvrError, match="this model names none"):
        quiet(max_steps=1).fit(Pretraining(), other)


def test_guidance_without_classes(learn: Learn, pictures: Path) -> None:
    learn(pictures, 2, **saving("run"))
    generator = load_generator("run/step=2.ckpt")
    with pytest.raises(HuvrError, match=r"guidance 2.0: it needs classes"):
        generator.sample([0], None, Sampling(guidance=2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 1.0}, "label_dropout"), ({"lr": 0.0}, "lr"), ({"warmup": 0.6, "decay": 0.6}, "warmup"),
        ({"objective": "gan"}, "objective 'gan': choose one of diffusion, flow"), ({"betas": (0.9, 1.0)}, "betas"),
        ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HuvrError, match=message):
        Generation("net", **options)


def test_training_goes_on_with_the_statistics_it_began_with(learn: Learn, pictures: Path) -> None:
    learn(pictures, 2, **saving("run"))
    content = torch.load("run/step=2.ckpt", weights_only=True)
    told = content["huvr_generator"]["space"]["statistics"]
    for share, fits in ((1e-4, True), (0.1, False)):  # what other hardware rounds otherwise, and what it does not
        off = [mean + share * std for mean, std in zip(told["patch_mean"], told["patch_std"], strict=True)]
        space = content["huvr_generator"]["space"] | {"statistics": told | {"patch_mean": off}}
        torch.save(content | {"huvr_generator": content["huvr_generator"] | {"space": space}}, "moved.ckpt")
        if fits:
            module, _ = learn(pictures, 4, ckpt_path="moved.ckpt", **saving("resumed"))
            assert module.space.statistics.patch_mean.tolist() == torch.tensor(off).tolist()
        else:
            with pytest.raises(HuvrError, match="learned other latents"):
                learn(pictures, 4, ckpt_path="moved.ckpt", **saving("resumed"))


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_a_resumed_run_follows_the_options_it_is_given(learn: Learn, pictures: Path, warmup: float) -> None:
    learn(pictures, 2, model={"warmup": warmup}, **saving("first"))
    changed = {"warmup": warmup, "lr": 0.3, "weight_decay": 0.5, "betas": (0.8, 0.9)}
    learn(pictures, 4, model=changed, ckpt_path="first/step=2.ckpt", **saving("second"))
    (group,) = torch.load("second/step=4.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.3, 0.5, (0.8, 0.9))


def test_without_left_out_labels_there_is_no_picture_without_one(learn: Learn, pictures: Path) -> None:
    learn(pictures, 2, model={"label_dropout": 0.0}, **saving("run"))
    generator = load_generator("run/step=2.ckpt")
    assert generator.sample([0], [1], Sampling(steps=2)).shape[0] == 1
    for labels, guidance in ((None, 1.0), ([1], 2.0)):
        with pytest.raises(HuvrError, match="trained with label_dropout 0, the generator draws pictures of classes only"):
            generator.sample([0], labels, Sampling(guidance=guidance, steps=2))


def test_a_class_goes_by_its_name_before_its_number(learn: Learn, pictures: Path) -> None:
    for split in ("train", "val"):
        for name, number in {"blue": "10", "green": "2", "red": "1"}.items():
            Path(pictures, split, name).rename(Path(pictures, split, number))
    learn(pictures, 2, **saving("run"))
    generator = load_generator("run/step=2.ckpt")
    assert generator.space.classes == ["1", "10", "2"]
    assert generator.labels("2,1,10,0") == [2, 0, 1, 0]
