"""What every task begins with: an encoder that is loaded, frozen and asked for one kind of token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from huvr.errors import HuvrError
from huvr.hypernets.interface import HyperINR
from huvr.hypernets.mae import MAE
from huvr.hypernets.patchwise import PatchwiseHUVR
from huvr.hypernets.tokenizer import Tokenizer
from huvr.hypernets.weights import load
from huvr.model import HUVR
from huvr.model.encoder import is_vit, tokens_of
from huvr.model.tokens import Tokens
from huvr.teacher import RGB, Teacher, TeacherConfig
from huvr.weights import SHIPPED

from .pca import PCA, Moments
from .storage import Storage, as_stored, size_stored

Precision = Literal["fp32", "bf16"]
# What makes each kind of token in a HUVR network: names of its tensors begin so.
PARTS = {
    "standard": ("encoder.",),
    "tintok": ("encoder.", "bottleneck.down."),
    "decoder": ("encoder.", "bottleneck.", "decoder."),
}

SEEN = "huvr_tokens"  # what a checkpoint says of the tokens that its head was trained on
KINDS = "standard, tintok, decoder, or pca<d> such as pca32"


@dataclass(frozen=True)
class EncoderConfig:
    """A network, and which of its tokens a task sees.

    Attributes:
        source: whatever ``huvr.load`` opens, or a run of another hyper-network (:mod:`huvr.hypernets`), or ``timm:NAME`` for
            any timm network.
        tokens: "standard"; "tintok" or "decoder" of a HUVR network; "pca32" for 32 principal components of the
            standard tokens, fitted on the training split.
        layer: block whose output stands for the standard tokens, of a ViT through the final norm; of other timm networks a stage,
            as it comes. -1 is the last. Of HUVR and timm.
        weights: of a timm network: "hub", or a local ``.safetensors`` or ``.pth`` file.
        mean, std: normalisation of a timm network's images in [0, 1]; None is its own.
        arguments: of timm.create_model for a timm network, such as ``{pad_type: same}``.
        stored: how the tokens would be kept, which is what a task sees of them, see :mod:`huvr.tasks.storage`.
        precision: "bf16" runs the network under autocast.
    """

    source: str = SHIPPED
    tokens: str = "standard"
    layer: int | None = None
    weights: str = "hub"
    mean: RGB | None = None
    std: RGB | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    stored: Storage = "fp16"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"standard|tintok|decoder|pca[1-9]\d*", self.tokens):
            raise HuvrError(f"tokens {self.tokens!r}: choose {KINDS}")
        for name, allowed in (("stored", Storage), ("precision", Precision)):
            if getattr(self, name) not in get_args(allowed):
                raise HuvrError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(get_args(allowed))}")
        if self.tokens in ("tintok", "decoder"):
            if self.timm_name:
                raise HuvrError(f"tokens {self.tokens}: {self.source} is no HUVR network and has only standard and pca<d>")
            if self.layer is not None:
                raise HuvrError(f"layer {self.layer}: {self.tokens} tokens come from the last layer; leave it out")
        if not self.timm_name and (self.weights != "hub" or self.mean or self.std or self.arguments):
            raise HuvrError(f"weights, mean, std and arguments belong to timm:NAME; {self.source} has its own")

    @property
    def timm_name(self) -> str | None:
        """NAME of ``timm:NAME``."""
        return self.source[len("timm:") :] if self.source.startswith("timm:") else None

    @property
    def components(self) -> int | None:
        """d of ``pca<d>``."""
        return int(self.tokens[len("pca") :]) if self.tokens.startswith("pca") else None


class FrozenEncoder:
    """Images ``(B, 3, H, W)`` in [0, 1] to the tokens of a network that never learns.

    Where a network has no cls token, the mean of its patches stands for it. A ViT takes any size, and so does MAE; the edge
    is repeated up to whole patches.

    It is no ``nn.Module`` on purpose: its parameters belong to no optimiser and no checkpoint of a task.

    Attributes:
        width: numbers of a standard token.

    Raises:
        HuvrError: for a source that cannot be loaded, or has no such tokens or layer.
    """

    def __init__(self, config: EncoderConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.pca: tuple[PCA, PCA] | None = None
        self.model: HUVR | None = None
        self.network: Any  # of timm, or another hyper-network
        if config.timm_name:
            own: dict[str, Any] = {"mean": config.mean, "std": config.std, "arguments": config.arguments}
            try:
                teacher = Teacher(TeacherConfig(config.timm_name, config.weights, **own), device)
            except HuvrError as error:
                raise HuvrError(f"encoder {config.source}: {error}") from None
            self.network, self.mean, self.std = teacher.network, teacher.mean, teacher.std
        elif isinstance(net := load(config.source, str(device)).requires_grad_(False), PatchwiseHUVR):
            self.model = net.net
            self.network, self.mean, self.std = net.net.encoder.vit, net.net.encoder.mean, net.net.encoder.std
        else:
            if config.tokens in ("tintok", "decoder"):
                kind = type(net).__name__
                raise HuvrError(f"tokens {config.tokens}: {config.source} is of {kind}, which has only standard and pca<d>")
            self.network = net
            self.mean, self.std = torch.zeros(1, 3, 1, 1, device=device), torch.ones(1, 3, 1, 1, device=device)
        self.layer = None if config.layer is None else self._block(config.layer)
        stages = self.layer is not None and not is_vit(self.network)
        self.width: int = self.network.feature_info[self.layer]["num_chs"] if stages else self.network.num_features
        if config.components and config.components > self.width:
            raise HuvrError(f"tokens {config.tokens}: the standard tokens have {self.width} numbers")

    def _block(self, layer: int) -> int:
        if isinstance(self.network, HyperINR):
            kind = type(self.network).__name__
            raise HuvrError(f"layer {layer}: {self.config.source} is of {kind}, seen after its last layer alone; leave it out")
        blocks = len(self.network.blocks) if is_vit(self.network) else len(self.network.feature_info)
        if not -blocks <= layer < blocks:
            raise HuvrError(f"layer {layer}: {self.config.source} has {blocks}, 0 to {blocks - 1} or -1 to -{blocks}")
        return layer % blocks

    def to(self, device: torch.device | str) -> FrozenEncoder:
        (self.model or self.network).to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides about the tokens before PCA: weights, shape of the network, normalisation, kind.

        TinToks keep it where only what follows them was trained further.
        """
        digest = hashlib.blake2b(digest_size=16)
        kind = "standard" if self.config.components else self.config.tokens
        eyes = (self.mean.flatten().tolist(), self.std.flatten().tolist(), self.config.precision)
        if self.model:
            parts, shape = PARTS[kind], repr(asdict(replace(self.model.config, distill_dims={})))
        elif isinstance(self.network, HyperINR):
            parts, shape = ("",), repr((type(self.network).__name__, self.network.config))
        else:
            parts, shape = ("",), repr((self.config.timm_name, self.config.arguments))
        digest.update(repr((shape, kind, self.layer, *eyes)).encode())
        tensors = (self.model or self.network).state_dict()
        for name, tensor in sorted(tensors.items()):
            if not name.startswith(parts):
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def dim(self) -> int:
        """Numbers per token."""
        if self.model and self.config.tokens in ("tintok", "decoder"):
            return self.model.config.tintok_dim if self.config.tokens == "tintok" else self.model.config.decoder_width
        return self.config.components or self.width

    def __call__(self, images: Tensor) -> Tokens:
        return self.finish(self.look(images))

    @torch.no_grad()
    def look(self, images: Tensor) -> Tokens:
        """The tokens before PCA and storage, in fp32."""
        normalised = (self._fitting(images.to(self.device)) - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            tokens = self._standard(normalised)
            if self.model and self.config.tokens in ("tintok", "decoder"):
                tokens = self.model.compress(tokens)
                tokens = self.model.expand(tokens) if self.config.tokens == "decoder" else tokens
        return tokens.apply(Tensor.float)

    def finish(self, tokens: Tokens) -> Tokens:
        """What :meth:`look` gave, through PCA where asked for, as it comes back from where it was stored."""
        return self.project(tokens).apply(lambda values: as_stored(values, self.config.stored))

    def stored_bytes(self, tokens: Tokens) -> int:
        """Bytes of all tokens of one image of a batch, the global one included."""
        return (1 + tokens.patches.shape[1]) * size_stored(self.dim, self.config.stored)

    def fit(self, tokens: Iterable[Tokens]) -> None:
        """Find the principal components of training tokens as :meth:`look` gives them, of cls and patches each their own."""
        moments: tuple[Moments, Moments] | None = None
        for each in tokens:
            moments = moments or (Moments(each.dim, each.cls.device), Moments(each.dim, each.cls.device))
            moments[0].add(each.cls)
            moments[1].add(each.patches.flatten(0, 1))
        if moments is None or self.config.components is None:
            raise HuvrError(f"tokens {self.config.tokens}: nothing to fit principal components on")
        self.pca = PCA(moments[0], self.config.components), PCA(moments[1], self.config.components)

    def project(self, tokens: Tokens) -> Tokens:
        """PCA of what :meth:`look` gave, where the tokens are to be ``pca<d>``."""
        if self.config.components is None:
            return tokens
        if self.pca is None:
            raise HuvrError(f"tokens {self.config.tokens}: not fitted on a training split yet")
        return replace(tokens, cls=self.pca[0](tokens.cls), patches=self.pca[1](tokens.patches))

    def _fitting(self, images: Tensor) -> Tensor:
        """Images of a size that the network takes."""
        if steps := patch_size(self.network):
            down, right = (-side % step for side, step in zip(images.shape[-2:], steps, strict=True))
            return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images
        if isinstance(self.network, HyperINR):  # which says itself what it cannot take
            return images
        own = self.network.pretrained_cfg
        if own["fixed_input_size"] and images.shape[1:] != own["input_size"]:
            height, width = own["input_size"][1:]
            raise HuvrError(f"{self.config.source} only takes images of {height}x{width} pixels: set data.crop {height}")
        return images

    def _standard(self, normalised: Tensor) -> Tokens:
        if isinstance(self.network, HyperINR):
            return self.network.tokens(normalised)
        return tokens_of(self.network, normalised) if self.layer is None else self._intermediate(normalised)

    def _intermediate(self, normalised: Tensor) -> Tokens:
        """The output of one block in place of the last; of a network without blocks, of one of its stages."""
        prefix = getattr(self.network, "num_prefix_tokens", 0)
        options = {"return_prefix_tokens": True} if prefix else {}
        refusal = f"layer {self.layer}: {self.config.source} does not give the tokens of single layers; leave it out"
        try:
            (found,) = self.network.forward_intermediates(
                normalised, [self.layer], norm=is_vit(self.network), stop_early=True, intermediates_only=True, **options
            )
        except (AttributeError, TypeError) as error:  # of networks of timm that know not all of that
            raise HuvrError(refusal) from error
        has_cls = getattr(self.network, "cls_token", None) is not None
        if (prefix or has_cls) and not isinstance(found, tuple | list):
            raise HuvrError(refusal)
        picture = found[0] if prefix else found
        patches = picture.flatten(2).transpose(1, 2)
        return Tokens(found[1][:, 0] if has_cls else patches.mean(1), patches, tuple(picture.shape[2:]))


def patch_size(network: Any) -> tuple[int, int] | None:
    """Height and width in pixels of the patches that images are filled up to whole ones of; None of other networks."""
    if isinstance(network, MAE):
        return network.patch, network.patch
    return network.patch_embed.feat_ratio(as_scalar=False) if is_vit(network) else None


def cut(network: Any) -> tuple[tuple[int, int] | None, int]:
    """The patches that a network cuts images into, and the pixels that it puts around them before; None where there are none."""
    if isinstance(tokenizer := getattr(network, "tokenizer", None), Tokenizer):
        (height, width), margin = tokenizer.project.kernel_size, int(tokenizer.project.padding[0])
        return (height, width), margin
    return patch_size(network), 0


class FrozenEncoderTask(LightningModule):
    """A task on the tokens of a frozen encoder.

    ``huvr probe`` fits a task that has a ``training_step``, keeps the best, and tests it; what ``test_step`` logs is the
    result, and ``details`` is whatever else belongs into its record.

    Attributes:
        headline: the metric that stands for the task in a report; None is the first.
        lower_is_better: of the headline.
        learns: whether it looks at the training split; principal components are found there in any case.
    """

    headline: ClassVar[str | None] = None
    lower_is_better: ClassVar[bool] = False
    learns: bool = True

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.encoder = FrozenEncoder(encoder)
        self.details: dict[str, Any] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[SEEN] = self._seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A head is of no use on the tokens of another encoder, even one that lies at the same place."""
        if checkpoint.get(SEEN, self._seen) != self._seen:
            raise HuvrError(
                f"ckpt_path: trained on other tokens than {self.encoder.config.source} gives now; begin anew in another --run"
            )

    @property
    def _seen(self) -> str:
        config = self.encoder.config
        return f"{self.encoder.fingerprint} {config.tokens} {config.stored}"
