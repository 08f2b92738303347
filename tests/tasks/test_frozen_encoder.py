"""Tokens of a frozen encoder are those of the network itself; what does not exist is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import huvr
from huvr.errors import HuvrError
from huvr.model import HUVR, HUVRConfig, Tokens
from huvr.tasks.base import EncoderConfig, FrozenEncoder

TINY = HUVRConfig(
    image_size=32, patch=8, width=48, depth=2, heads=3, tintok_dim=8, decoder_width=48, decoder_depth=1, decoder_heads=3,
    decoder_hidden=96, inr_widths=(16, 16, 16), inr_frequencies=4, inr_max_frequency=8.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "net"
    HUVR(TINY).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weight files of timm networks, by name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    names = ("test_vit", "test_convnext")
    for name in names:
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in names}


def same(tokens: Tokens, expected: Tokens) -> None:
    assert tokens.grid == expected.grid
    torch.testing.assert_close(tokens.sequence, expected.sequence)


@torch.no_grad()
def test_tokens_of_our_network_at_any_size(ours: str) -> None:
    model, images = huvr.load(ours), torch.rand(2, 3, 30, 44)
    standard = model.encode(images)
    same(FrozenEncoder(EncoderConfig(ours)).look(images), standard)
    same(FrozenEncoder(EncoderConfig(ours, "tintok")).look(images), model.compress(standard))
    same(FrozenEncoder(EncoderConfig(ours, "decoder")).look(images), model.expand(model.compress(standard)))


@torch.no_grad()
def test_tokens_of_a_timm_vit(weights: dict[str, str]) -> None:
    config = EncoderConfig("timm:test_vit", weights=weights["test_vit"], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = torch.rand(2, 3, 160, 160)
    network = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"file": weights["test_vit"]}).eval()
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (config.mean, config.std))
    expected = network.forward_features((images - mean) / std)
    tokens = FrozenEncoder(config).look(images)
    torch.testing.assert_close(tokens.sequence, expected)
    assert tokens.grid == (10, 10)


@torch.no_grad()
def test_a_network_without_cls_gives_the_mean_of_its_patches(weights: dict[str, str]) -> None:
    tokens = FrozenEncoder(EncoderConfig("timm:test_convnext", weights=weights["test_convnext"])).look(torch.rand(1, 3, 64, 96))
    assert tokens.grid == (2, 3)
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))


@torch.no_grad()
def test_a_layer_is_the_output_of_its_block(ours: str, weights: dict[str, str]) -> None:
    images = torch.rand(2, 3, 160, 160)
    for source, options in ((ours, {}), ("timm:test_vit", {"weights": weights["test_vit"]})):
        plain = FrozenEncoder(EncoderConfig(source, **options))
        same(FrozenEncoder(EncoderConfig(source, layer=-1, **options))(images), plain(images))
        first = FrozenEncoder(EncoderConfig(source, layer=0, **options))(images)
        del plain.network.blocks[1:]  # what remains is one block, then the final norm
        same(first, plain(images))


@torch.no_grad()
def test_a_layer_of_a_convolutional_network_is_a_stage(weights: dict[str, str]) -> None:
    config = EncoderConfig("timm:test_convnext", weights=weights["test_convnext"], layer=0)
    tokens = FrozenEncoder(config).look(torch.rand(1, 3, 64, 96))
    assert tokens.grid == (16, 24)
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))


@torch.no_grad()
def test_a_stage_has_as_many_numbers_as_it_has_channels(weights: dict[str, str]) -> None:
    options = {"source": "timm:test_convnext", "weights": weights["test_convnext"]}
    for layer, channels in ((0, 24), (1, 32), (None, 64)):
        encoder = FrozenEncoder(EncoderConfig(**options, layer=layer))  # type: ignore[arg-type]
        tokens = encoder.look(torch.rand(1, 3, 64, 96))
        assert encoder.dim == tokens.dim == channels
        assert encoder.stored_bytes(tokens) == (1 + tokens.patches.shape[1]) * 2 * channels
    with pytest.raises(HuvrError, match="tokens pca25: the standard tokens have 24 numbers"):
        FrozenEncoder(EncoderConfig(**options, layer=0, tokens="pca25"))  # type: ignore[arg-type]


def test_networks_that_give_no_tokens_of_patches_are_one_line(tmp_path: Path) -> None:
    save_file(timm.create_model("mixer_s32_224").state_dict(), tmp_path / "mixer.safetensors")
    config = EncoderConfig("timm:mixer_s32_224", weights=str(tmp_path / "mixer.safetensors"))
    with pytest.raises(HuvrError, match="MlpMixer of timm gives features that are neither a map nor tokens of patches"):
        FrozenEncoder(config).look(torch.rand(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["pit_ti_224", "cait_xxs24_224"])
def test_networks_that_give_no_single_layers_are_one_line(name: str, tmp_path: Path) -> None:
    save_file(timm.create_model(name).state_dict(), tmp_path / "net.safetensors")
    encoder = FrozenEncoder(EncoderConfig(f"timm:{name}", weights=str(tmp_path / "net.safetensors"), layer=-1))
    with pytest.raises(HuvrError, match=rf"layer \d+: timm:{name} does not give the tokens of single layers; leave it out"):
        encoder.look(torch.rand(1, 3, 224, 224))


def test_weights_of_a_network_with_two_classifiers(tmp_path: Path) -> None:
    save_file(timm.create_model("deit_tiny_distilled_patch16_224").state_dict(), tmp_path / "deit.safetensors")
    config = EncoderConfig("timm:deit_tiny_distilled_patch16_224", weights=str(tmp_path / "deit.safetensors"))
    assert FrozenEncoder(config).look(torch.rand(1, 3, 224, 224)).patches.shape == (1, 196, 192)


def test_nothing_learns(ours: str) -> None:
    encoder = FrozenEncoder(EncoderConfig(ours))
    assert not encoder.network.training
    tokens = encoder(torch.rand(1, 3, 32, 32, requires_grad=True))
    assert not tokens.cls.requires_grad


@torch.no_grad()
def test_pca_of_cls_and_patches_keeps_what_lies_in_their_own_planes(ours: str) -> None:
    encoder = FrozenEncoder(EncoderConfig(ours, "pca3"))
    images = torch.rand(6, 3, 32, 32)
    with pytest.raises(HuvrError, match="not fitted"):
        encoder(images)
    looks = encoder.look(images)
    same(looks, huvr.load(ours).encode(images))
    encoder.fit(encoder.look(batch) for batch in images.split(4))
    found = encoder(images)
    for part, raw in ((found.cls, looks.cls), (found.patches.flatten(0, 1), looks.patches.flatten(0, 1))):
        assert part.shape[-1] == 3
        variances = torch.linalg.svdvals((raw - raw.mean(0)).double())[:3] ** 2
        torch.testing.assert_close(part.double().square().sum(0), variances, rtol=1e-3, atol=1e-6)


def test_the_fingerprint_is_of_weights_normalisation_and_kind(ours: str, weights: dict[str, str], tmp_path: Path) -> None:
    def fingerprint(source: str, tokens: str = "standard", **options: object) -> str:
        return FrozenEncoder(EncoderConfig(source, tokens, **options)).fingerprint  # type: ignore[arg-type]

    model = huvr.load(ours)
    model.save(tmp_path / "copy")
    model.encoder.vit.blocks[1].mlp.fc2.bias.data[3] += 1e-3
    model.save(tmp_path / "changed")
    vit = {"weights": weights["test_vit"]}
    different = [
        fingerprint(ours), fingerprint(str(tmp_path / "changed")), fingerprint(ours, "tintok"), fingerprint(ours, layer=0),
        fingerprint("timm:test_vit", **vit), fingerprint("timm:test_vit", **vit, mean=(0.1, 0.2, 0.3)),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert fingerprint(str(tmp_path / "copy")) == fingerprint(ours, "pca4") == fingerprint(ours)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokens": "tintoks"}, "tokens 'tintoks': choose standard, tintok, decoder, or pca<d>"),
        ({"tokens": "pca0"}, "tokens 'pca0': choose standard"),
        ({"tokens": "pca49"}, "tokens pca49: the standard tokens have 48 numbers"),
        ({"tokens": "tintok", "layer": 0}, "layer 0: tintok tokens come from the last layer"),
        ({"layer": 2}, r"layer 2: .* has 2, 0 to 1 or -1 to -2"),
        ({"mean": (0.5, 0.5, 0.5)}, "weights, mean, std and arguments belong to timm:NAME"),
        ({"source": "timm:test_vit", "tokens": "decoder"}, "tokens decoder: timm:test_vit is no HUVR network"),
        ({"source": "timm:tset_vit"}, "encoder timm:tset_vit: .* is no timm model .the nearest is test_vit"),
        ({"source": "timm:test_vit", "weights": "none.pth"}, "encoder timm:test_vit: .*no such file: none.pth"),
        ({"source": "nowhere"}, "nowhere: no such file or directory"),
    ],
)
def test_what_does_not_exist_is_refused(ours: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(HuvrError, match=message) as error:
        FrozenEncoder(EncoderConfig(**({"source": ours} | config)))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_network_of_one_size_says_so(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    network = timm.create_model(name, embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    encoder = FrozenEncoder.__new__(FrozenEncoder)
    encoder.config, encoder.network = EncoderConfig(f"timm:{name}"), network
    with pytest.raises(HuvrError, match=f"timm:{name} only takes images of 224x224 pixels"):
        encoder._fitting(torch.rand(1, 3, 64, 64))


def test_tintoks_keep_their_fingerprint_where_only_the_decoder_was_trained_further(ours: str, tmp_path: Path) -> None:
    model = huvr.load(ours)
    for parameter in [*model.decoder.parameters(), *model.bottleneck.up.parameters(), *model.inr.parameters()]:
        parameter.data.add_(1)
    model.save(tmp_path / "finetuned")
    kinds = ("standard", "tintok", "decoder")
    sources = (ours, str(tmp_path / "finetuned"))
    first, second = ([FrozenEncoder(EncoderConfig(each, kind)).fingerprint for kind in kinds] for each in sources)
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len({*first}) == 3
    next(model.bottleneck.down.parameters()).data.add_(1)
    model.save(tmp_path / "other")
    assert FrozenEncoder(EncoderConfig(str(tmp_path / "other"), "tintok")).fingerprint != first[1]
