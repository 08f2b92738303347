"""The second stage of LIFT: a transformer learns latents, and LIFT paints what it generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_hypernets import pictures as images_of
from tiny_hypernets import run_of, tiny
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.hypernets.lift_images import LIFTImages
from huvr.hypernets.lift_meta import encode, reconstruct
from huvr.tasks.generation.codec import open_codec
from huvr.tasks.generation.generator import load_generator
from huvr.tasks.generation.lift_codec import LIFTLatents
from huvr.tasks.generation.sampling import Sampling


@pytest.fixture
def run(tmp_path: Path) -> str:
    return run_of(tiny("LIFT"), tmp_path / "lift")


def test_latents_are_those_of_lift_and_drawn_by_it(run: str) -> None:
    codec, lift = open_codec(f"lift:{run}"), tiny("LIFT").lift
    assert isinstance(codec, LIFTLatents)
    assert (codec.patch, codec.dim, codec.source) == (8, 6, f"lift:{run}")  # 2 × 2 latents of 6 numbers for 16 pixels
    tokens = codec.look(images_of())
    torch.testing.assert_close(tokens.sequence, encode(lift, images_of()).sequence)
    drawn = codec.draw(tokens)
    torch.testing.assert_close(drawn, reconstruct(lift, images_of()))
    torch.testing.assert_close(codec.draw(tokens, 3)[..., 1::3, 1::3], drawn, rtol=0, atol=1e-4)


def test_a_generator_learns_and_draws_them(learn: Callable[..., Any], pictures: Path, run: str) -> None:
    keeper = ModelCheckpoint("there", save_last=True)
    options: dict[str, Any] = {"data": {"size": 16}, "model": {"encoder": f"lift:{run}"}, "enable_checkpointing": True}
    _, data = learn(pictures, 3, callbacks=[keeper], **options)
    assert data.space.shape == (1 + 2 * 2, 6)
    generator = load_generator("there/last.ckpt")
    drawn = torch.stack(list(generator.pictures(2, [0, 2], Sampling(steps=3, guidance=2.0), scale=2)))
    assert drawn.shape == (2, 3, 32, 32)
    # what lies on the disk, plain and mirrored, is drawn as LIFT draws the pictures themselves
    sequence, _ = data.shards.read(0, False)
    tokens = data.space.denormalise(data.space.normalise(sequence)[None])
    assert F.mse_loss(generator.codec.draw(tokens), generator.codec.draw(data.encoder.look(first(data)))) < 1e-5
    with pytest.raises(HuvrError, match="the generator learned TinToks of another network"):
        load_generator("there/last.ckpt", encoder=f"lift:{other(run)}")


def first(data: Any) -> torch.Tensor:
    from huvr.data.transforms import centre_crop

    return centre_crop(16)(data.source[0].readable(0).image)[None].float() / 255


def other(run: str) -> str:
    net = tiny("LIFT")
    assert isinstance(net, LIFTImages)
    net.lift.to_shifts.bias.data.add_(0.1)
    return run_of(net, Path(run).with_name("other"))


def test_what_it_cannot_take(run: str, tmp_path: Path) -> None:
    codec = open_codec(f"lift:{run}")
    with pytest.raises(HuvrError, match=r"images of 32x32 pixels: lift:.* learned latents of 16x16: set data.size 16"):
        codec.look(torch.rand(1, 3, 32, 32))
    ginr = run_of(tiny("GINR"), tmp_path / "ginr")
    with pytest.raises(HuvrError, match=r"encoder lift:.*ginr: not a run of LIFT; expected one of huvr fit"):
        open_codec(f"lift:{ginr}")
    with pytest.raises(HuvrError, match=r"tokens tintok: .* is of LIFTImages, which has only standard and pca<d>"):
        open_codec(run)
    for size, told in (((), r"\(\)"), ((16, 32), r"\(16, 32\)")):
        odd = run_of(LIFTImages(tiny("LIFT").lift, size), tmp_path / f"odd{len(size)}")
        with pytest.raises(HuvrError, match=rf"it learned images of size {told}, expected square ones"):
            open_codec(f"lift:{odd}")
