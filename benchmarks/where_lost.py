"""Where a network loses what it does not draw: in its tokens, its TinToks, or its decoder.

    python benchmarks/where_lost.py --data imagenet1k-sample-256/train.parquet --encoders huvr-tiny runs/tiny

Middle squares of photographs, of which the last tenth is held out. Linear maps to the pixels of a patch, fitted by least squares
to the training photographs, read its token, after the LayerNorm that comes before TinToks, or its TinTok: what these hold,
without a decoder. TinToks found by descent on each image, from those of the encoder on, show what the decoder could draw from
so many numbers. As many training photographs as are held out, drawn as well, show what is not lost but learned by heart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import RESULTS, short, write_record
from pictures import load_pictures
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop

from huvr import HUVR, load
from huvr.metrics import psnr
from huvr.tasks.rivals import PatchPCA

BATCH = 16
Reader = Callable[[Tensor], Tensor]  # images (B, 3, H, W) to the inputs of a linear map, (B, h * w, D)


def squares(pictures: list[Tensor], size: int) -> Iterator[Tensor]:
    """Batches ``(B, 3, S, S)`` in [0, 1]."""
    for batch in torch.stack([center_crop(picture, [size]) for picture in pictures]).split(BATCH):
        yield batch.float() / 255


def inputs(patches: Tensor) -> Tensor:
    """Each patch token beside a 1.

    Not beside the global one: to that, as it is the same for all patches of a photograph, a map would fit photographs by heart.
    """
    return torch.cat([patches, torch.ones_like(patches[..., :1])], dim=2)


class LinearReader:
    """The least squares of patches of pixels on what ``read`` gives, with a small ridge."""

    @torch.no_grad()
    def __init__(self, read: Reader, images: Iterator[Tensor], patch: int) -> None:
        self.read, self.patch = read, patch
        among, across = 0.0, 0.0
        for batch in images:
            x = read(batch).flatten(0, 1).double()
            among, across = among + x.T @ x, across + x.T @ self._patches(batch).flatten(0, 1).double()
        ridge = 1e-6 * among.diagonal().mean() * torch.eye(len(among))  # type: ignore[attr-defined]
        self.weight = torch.linalg.solve(among + ridge, across).float()

    def __call__(self, images: Tensor) -> Tensor:
        return F.fold((self.read(images) @ self.weight).transpose(1, 2), images.shape[-2:], self.patch, stride=self.patch)

    def _patches(self, images: Tensor) -> Tensor:
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)


@torch.no_grad()
def refined(model: HUVR, images: Tensor, steps: int) -> Tensor:
    """What is drawn from the best TinToks of these images that descent finds."""
    tintoks = model.refine(model.compress(model.encode(images)), images, steps)
    return model.paint(model.expand(tintoks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a Parquet file of photographs, whose last tenth is held out")
    parser.add_argument("--encoders", nargs="+", default=["huvr-tiny"], help="HUVR networks of one patch and one size of TinToks")
    parser.add_argument("--size", type=int, default=256, help="side of the squares in pixels")
    parser.add_argument("--descent_images", type=int, default=BATCH, help="held-out photographs whose TinToks are searched for")
    parser.add_argument("--descent_steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {short(name): load(name).requires_grad_(False) for name in args.encoders}
    if len({(model.patch, model.config.tintok_dim) for model in models.values()}) > 1:
        parser.error("--encoders: networks of one patch and one size of TinToks are expected")
    train, held_out, data = load_pictures(args.data, args.size)
    few, learned = held_out[: args.descent_images], train[:: len(train) // len(held_out)]

    def mean(method: Callable[[Tensor], Tensor], pictures: list[Tensor]) -> float:
        values = torch.cat([psnr(method(images), images) for images in squares(pictures, args.size)])
        return round(values.mean().item(), 2)

    @torch.inference_mode()
    def both(method: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return {"all": mean(method, held_out), "few": mean(method, few)}

    @torch.inference_mode()
    def as_it_is(method: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return both(method) | {"learned": mean(method, learned)}

    def lost(model: HUVR) -> dict[str, dict[str, float]]:
        norm = model.bottleneck.down[0] if isinstance(model.bottleneck.down, nn.Sequential) else nn.Identity()

        def tokens(images: Tensor) -> Tensor:
            return inputs(norm(model.encode(images).patches))

        def tintoks(images: Tensor) -> Tensor:
            return inputs(model.compress(model.encode(images)).patches)

        return {
            "as it is": as_it_is(model.reconstruct),
            "linear from tokens": both(LinearReader(tokens, squares(train, args.size), model.patch)),
            "linear from TinToks": both(LinearReader(tintoks, squares(train, args.size), model.patch)),
            "TinToks found by descent": {"few": mean(lambda images: refined(model, images, args.descent_steps), few)},
        }

    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, model in models.items():
        figures[name] = lost(model)
        print(name, figures[name], flush=True)
    model = next(iter(models.values()))
    pca = PatchPCA(squares(train, args.size), model.patch, model.config.tintok_dim)
    figures["per-patch PCA"] = {"as it is": as_it_is(pca.reconstruct)}
    options = {key: value for key, value in vars(args).items() if key not in ("out", "data")}
    write_record("where_lost", data, options, figures, args.out)


if __name__ == "__main__":
    main()
