"""Finetuning of the decoder: what learns, what the noise is, and that trained generators go with the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

import huvr
from huvr.cli import main
from huvr.data import Images
from huvr.data.transforms import centre_crop
from huvr.errors import HuvrError
from huvr.metrics import psnr
from huvr.model import Tokens
from huvr.tasks.generation.codec import TinToks
from huvr.tasks.generation.finetune import DecoderFinetuning
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.latents import Latents

Finetune = Callable[..., DecoderFinetuning]


@pytest.fixture
def finetune(quiet: Any, encoder: str, pictures: Path) -> Finetune:
    """Trains for as many steps as asked for."""

    def run(steps: int = 2, ckpt_path: str | None = None, trainer: dict[str, Any] | None = None, **model: Any) -> Any:
        torch.manual_seed(0)
        module = DecoderFinetuning(**({"encoder": encoder, "pictures_every": 0, "lr": 0.1} | model))
        data = Images(str(pictures), size=32, batch_size=6, workers=0)
        quiet(max_steps=steps, **(trainer or {})).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module

    return run


def saving(run: str) -> dict[str, Any]:
    kept = ModelCheckpoint(f"{run}/checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1, monitor=None)
    return {"enable_checkpointing": True, "callbacks": [EMAWeightAveraging(decay=0.6, use_buffers=False), kept]}


def test_encoder_and_tintoks_stay_and_the_rest_learns(finetune: Finetune, encoder: str) -> None:
    finetune(trainer=saving("run"), optimizer="muon")
    before, after = huvr.load(encoder).state_dict(), huvr.load("run").state_dict()
    assert before.keys() == after.keys()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    frozen = {name for name in before if name.startswith(("encoder.", "bottleneck.down.", "distill."))}
    assert frozen <= same
    assert any(name.startswith("bottleneck.up") for name in before.keys() - same)
    assert {name.partition(".")[0] for name in before.keys() - same} >= {"bottleneck", "decoder", "inr"}
    assert TinToks(encoder).fingerprint == TinToks("run").fingerprint


def test_a_generator_that_learned_the_original_goes_with_it(
    finetune: Finetune, learn: Callable[..., Any], pictures: Path, encoder: str
) -> None:
    kept = ModelCheckpoint("generator/checkpoints", "last", monitor=None)
    _, data = learn(pictures, 2, enable_checkpointing=True, callbacks=[kept])
    finetune(trainer=saving("run"))
    original, finetuned = load_generator("generator"), load_generator("generator", "run")
    latents = torch.zeros(1, *data.space.shape)
    with torch.no_grad():
        assert not torch.allclose(original.draw(latents), finetuned.draw(latents), atol=1e-3)
    assert isinstance(data, Latents)


def test_the_noise_has_the_deviation_of_each_channel_and_a_strength_for_each_image(encoder: str) -> None:
    module = DecoderFinetuning(encoder, tau=0.6)
    of_cls, of_patches = torch.linspace(0.5, 3, 8), torch.linspace(4, 1, 8)
    module.deviations = (of_cls, of_patches)
    tokens = Tokens(torch.ones(3000, 8), torch.full((3000, 16, 8), 2.0), (4, 4))
    noisy = module.noisy(tokens, torch.Generator().manual_seed(0))
    added = (noisy.cls - 1) / of_cls, (noisy.patches - 2) / of_patches
    for values in (added[0], added[1].flatten(0, 1)):
        assert values.mean().abs() < 0.02
        assert torch.allclose(values.var(0), torch.tensor(0.6**2 / 3), rtol=0.1)  # E[u²] = 1/3 of u uniform
    strengths = added[1].flatten(1).std(1)  # of 128 numbers each
    for share in (0.25, 0.5, 0.75):
        assert strengths.quantile(share).item() == pytest.approx(0.6 * share, abs=0.02)
    assert torch.corrcoef(torch.stack([strengths, added[0].std(1)]))[0, 1] > 0.7  # one strength for all tokens of an image


def test_deviations_are_those_of_the_training_images(finetune: Finetune, encoder: str, pictures: Path) -> None:
    module = finetune()
    data = Images(str(pictures), size=32, batch_size=6, workers=0)
    data.setup()
    model = huvr.load(encoder)
    images = torch.stack([centre_crop(32)(data.train_rows.readable(n).image) for n in range(18)]) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        tokens = model.compress(model.encode(images))
    expected = tokens.cls.std(0, correction=0), tokens.patches.flatten(0, 1).std(0, correction=0)
    for found, wanted in zip(module.deviations, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


def drawn_from_noise(model: Any, module: DecoderFinetuning, images: Tensor) -> float:
    with torch.no_grad():
        tokens = module.noisy(model.compress(model.encode(images)), torch.Generator().manual_seed(5))
        return psnr(model.render(model.expand(tokens)), images).mean().item()


def test_drawings_from_noisy_tokens_get_better(finetune: Finetune, encoder: str, pictures: Path) -> None:
    module = finetune(60, optimizer="muon")
    images = torch.rand(6, 3, 1, 1).expand(-1, -1, 32, 32)
    assert drawn_from_noise(module.net, module, images) > drawn_from_noise(huvr.load(encoder), module, images) + 1


def test_a_resumed_run_equals_one_that_never_stopped(finetune: Finetune) -> None:
    finetune(4, trainer=saving("whole"), phase_jitter=0.3)
    torch.manual_seed(9)
    finetune(4, ckpt_path="whole/checkpoints/step=2.ckpt", trainer=saving("resumed"), phase_jitter=0.3)
    whole, resumed = (huvr.load(f"{run}/checkpoints/step=4.ckpt").state_dict() for run in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_shipped_config_runs(pictures: Path, encoder: str) -> None:
    options = {
        "model.encoder": encoder, "data.root": "pictures", "data.size": 32, "data.batch_size": 4, "data.workers": 0,
        "trainer.accelerator": "cpu", "trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    assert main(["fit", "--config", "generate/decoder.yaml", *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert huvr.load("runs/decoder").reconstruct(torch.rand(1, 3, 32, 32)).isfinite().all()
    assert TinToks(encoder).fingerprint == TinToks("runs/decoder").fingerprint
    config = (Path(__file__).parents[3] / "configs/generate/decoder.yaml").read_text()
    for words in ("huvr fit --config generate/decoder.yaml --model.encoder CKPT", "Hardware: ", "Time: ", "Metric: "):
        assert words in config


def test_bad_input(quiet: Any, encoder: str, learn: Callable[..., Any], pictures: Path) -> None:
    with pytest.raises(HuvrError, match="tau -1: expected 0 or more"):
        DecoderFinetuning(encoder, tau=-1)
    with pytest.raises(HuvrError, match="nowhere: no such file or directory"):
        DecoderFinetuning("nowhere")
    _, latents = learn(pictures, 1)
    with pytest.raises(HuvrError, match=r"a decoder is finetuned on images: data needs class_path huvr.data.Images"):
        quiet(max_steps=1).fit(DecoderFinetuning(encoder), latents)
