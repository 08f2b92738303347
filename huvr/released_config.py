"""The configuration of the released HUVR checkpoints: our config from tensors and settings, and back.

Many numbers hide in strings there or in the code, so the shape of the network is read from the tensors, and
the settings are only checked against it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Size, Tensor

from huvr.errors import HuvrError
from huvr.model import HUVRConfig

_log = logging.getLogger(__name__)

DISTILL = {"EC": "encoder_cls", "EP": "encoder_patches", "DC": "decoder_cls", "DP": "decoder_patches"}

# What the released code can do otherwise and we do not.
_ONLY: dict[str, Any] = {
    "is_patch_mode": True,
    "use_global_token": True,
    "use_hypocnn": True,
    "mod_idxs": "1",
    "tokenizer.use_decoder": False,
    "tokenizer.use_transcoder": False,
    "transformer_transcoder.dim": -1,
    "hyponet.in_dim": 2,
    "hyponet.depth": 3,
    "hyponet.strides": "1_1_1",
    "hyponet.use_pe": True,
    "hyponet.force_act": True,
    "hyponet.out_bias": 0.0,
    "hypocnn.ks": "3",
    "hypocnn.out_dim": 3,
    "hypocnn.out_bias": 0.0,
}
_ONLY_IN_TRAINER: dict[str, Any] = {"normalize_images": True, "coords_per_image": False}


def infer(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> HUVRConfig:
    """Our config of a released checkpoint.

    Args:
        tensors: by their released names.
        settings: of the hub's config.json or the trainer's "cfg"; may be empty, unless the decoder has attention.
        where: what to call the source in an error, and in the warning that names settings without a use.

    Raises:
        HuvrError: for a variant that is not supported and for settings that contradict the tensors.
    """
    stated = _flat(settings)
    if stated.get("decoder_type") == "old" or "tokenizer.decoder_posemb" in tensors:
        raise HuvrError(
            f"{where}: decoder_type = 'old', positions added before the decoder, is not supported, only 'pos_free' is"
        )
    for name, value in (_ONLY | _ONLY_IN_TRAINER).items():
        if name in stated and _differ(stated[name], value):
            raise HuvrError(f"{where}: {name} = {stated[name]!r} is not supported, only {value!r} is")
    config = _from_shapes(tensors, stated, where)
    for name, value in _witnessed(config).items():
        if name in stated and _differ(stated[name], value):
            raise HuvrError(f"{where}: its settings say {name} = {stated[name]!r}, but its tensors {value!r}")
    if ignored := sorted(stated.keys() - (_settings(config) | _ONLY_IN_TRAINER).keys()):
        _log.warning("%s: ignored the settings %s", where, ", ".join(ignored))
    return config


def hub_config(config: HUVRConfig) -> dict[str, Any]:
    """The released ``config.json``: arguments of the released network's constructor."""
    return _nested(_settings(config), suffix="_cfg")


def trainer_config(config: HUVRConfig) -> dict[str, Any]:
    """The "cfg" of the released trainer's ``.pth``, as far as it describes the network."""
    return _nested(_settings(config) | _ONLY_IN_TRAINER, suffix="")


def _settings(config: HUVRConfig) -> dict[str, Any]:
    """The whole network in the released settings, as dotted names."""
    return _ONLY | _unwitnessed(config) | _witnessed(config)


def _from_shapes(tensors: Mapping[str, Tensor], stated: Mapping[str, Any], where: str) -> HUVRConfig:
    def shape(name: str) -> Size:
        if name not in tensors:
            raise HuvrError(f"{where}: no tensor {name}, so this is no released HUVR checkpoint of a supported kind")
        return tensors[name].shape

    def layers(prefix: str) -> int:
        numbers = [int(match[1]) for name in tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))]
        return max(numbers, default=-1) + 1

    attention = "transformer_decoder.layers.0.0.fn.to_q.weight" in tensors
    if attention and "transformer_decoder.n_head" not in stated:
        raise HuvrError(f"{where}: tensors do not tell the decoder's attention heads: put the released config.json beside them")
    try:
        width, _, patch, _ = shape("transformer_encoder.patch_embed.proj.weight")
        rope = next((name for name in tensors if name.endswith(".rope.freqs_cos")), "transformer_encoder.rope.freqs_cos")
        positions, head_width = shape(rope)
        (rows, first), (_, second), (_, third) = (shape(f"base_params.wb{i}") for i in range(3))
        _, pixels = shape("base_params.cnn_wb0")
        (decoder_width,) = shape("wtoken_postfc.wb1_patch_postfc.0.weight")
        decoder_depth = layers("transformer_decoder.layers")
        hidden = shape("transformer_decoder.layers.0.1.fn.net.0.weight")[0] if decoder_depth else 4 * decoder_width
        registers = shape(name)[1] if (name := "transformer_encoder.register_tokens") in tensors else 0
        tintok_dim = shape(name)[0] if (name := "dimension_downsample.1.weight") in tensors else width
        distill = {place: f"wtoken_postfc.distill_{place.removesuffix('_cls')}.1.weight" for place in DISTILL.values()}
        distill_dims = {place: shape(name)[0] for place, name in distill.items() if name in tensors}
        return HUVRConfig(
            image_size=math.isqrt(positions) * patch,
            patch=patch,
            width=width,
            depth=layers("transformer_encoder.blocks"),
            heads=width // head_width,
            registers=registers,
            tintok_dim=tintok_dim,
            decoder_width=decoder_width,
            decoder_depth=decoder_depth,
            decoder_heads=max(int(stated.get("transformer_decoder.n_head", 1)), 1),
            decoder_hidden=hidden,
            decoder_attention=attention,
            inr_widths=(first, second, third),
            inr_frequencies=(rows - 1) // 4,
            inr_max_frequency=float(stated.get("hyponet.pe_sigma", 1024)),
            inr_upsample=math.isqrt(pixels // 3),
            modulation="released",
            distill_dims=distill_dims,
        )
    except HuvrError:
        raise
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise HuvrError(f"{where}: shapes or settings are not those of a released HUVR ({error})") from None


def _witnessed(config: HUVRConfig) -> dict[str, Any]:
    """Settings that follow from the tensors."""
    c = config
    decoder = {
        "decoder_type": "pos_free",
        "transformer_decoder.attention": c.decoder_attention,
        "transformer_decoder.dim": c.decoder_width,
        "transformer_decoder.depth": c.decoder_depth,
        "transformer_decoder.n_head": c.decoder_heads,
        "transformer_decoder.ff_dim": c.decoder_hidden,
    }
    if c.decoder_attention:
        decoder["transformer_decoder.head_dim"] = c.decoder_width // c.decoder_heads
    return {
        "tokenizer.input_size": c.image_size,
        "tokenizer.patch_size": c.patch,
        "tokenizer.dim": c.width,
        "tokenizer.decoder_dim": c.decoder_width,
        "transformer_encoder.dim": c.width,
        "transformer_encoder.use_registers": c.registers > 0,
        "embedding_dim": c.tintok_dim,
        "hyponet.hidden_dim": f"{c.inr_widths[0]}_{c.inr_widths[1]}",
        "hyponet.out_dim": c.inr_widths[2],
        "hyponet.pe_dim": 2 * c.inr_frequencies,
        "hypocnn.in_dim": c.inr_widths[2],
        "hypocnn.strds": str(c.inr_upsample),
        # where there is no decoder, its settings describe nothing
        **(decoder if c.decoder_depth else {}),
    }


def _unwitnessed(config: HUVRConfig) -> dict[str, Any]:
    """Settings that the released code wants and no tensor bears witness of."""
    c, places = config, config.distill_dims
    locations = [side for side in ("encoder", "decoder") if any(place.startswith(side) for place in places)]
    separate = ["separate"] if any(place.endswith("patches") for place in places) else []
    return {
        "decoder_type": "none",
        "distill_dim": [f"{short}_{places[place]}" for short, place in DISTILL.items() if place in places],
        "distill_location": "-".join(locations + separate) or None,
        "distill_mode": "dinov3_fancy",
        "n_groups": None,
        "hyponet.pe_sigma": c.inr_max_frequency,
        "hypocnn.hid_dim": c.inr_widths[2],
        "transformer_encoder.name": f"vit{'l' if c.width == 1024 else 'b'}_16_norm_only_rope_fixed",
        "transformer_decoder.head_dim": c.decoder_width // c.decoder_heads,
    }


def _differ(stated: Any, value: Any) -> bool:
    # the released files write the same setting as 4, 4.0 or "4"
    return stated != value and str(stated) != str(value)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as dotted names; the hub's "hyponet_cfg" is the trainer's "hyponet"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        section = name.removesuffix("_cfg")
        flat |= {f"{section}.{key}": entry for key, entry in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def _nested(flat: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        if section:
            nested.setdefault(section + suffix, {})[key] = value
        else:
            nested[name] = value
    return nested
