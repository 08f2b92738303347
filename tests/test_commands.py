"""reconstruct, encode and convert on a tiny random network and made-up photos."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import huvr
from huvr.cli import main
from huvr.commands.reconstruct import pieces
from huvr.model import HUVR


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``photos/`` in an empty working directory: two images of one size, one of another, and a corrupt file."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (24, 40), "b.png": (24, 40), "sub/c.png": (30, 21)}.items():
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    Path("photos/broken.jpg").write_bytes(b"no image")
    return Path("photos")


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def as_tensor(path: Path | str) -> torch.Tensor:
    return torch.from_numpy(pixels(path).astype(np.float32) / 255).permute(2, 0, 1)[None]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The last line on standard error of a call that must fail as a mistake of the user."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("huvr: error: ") == 1
    return error.splitlines()[-1].removeprefix("huvr: error: ")


def written(folder: Path | str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_reconstruct_prints_the_psnr_and_draws_the_panel(encoder: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "photos/a.png", "photos/sub/c.png", "--encoder", encoder, "--out", "out"]) == 0
    assert written("out") == ["a_panel.png", "c_panel.png"]
    printed = capsys.readouterr().out
    scores = []
    for name in ("a", "sub/c"):
        path = photos / f"{name}.png"
        truth = as_tensor(path)
        with torch.inference_mode():
            drawn = huvr.load(encoder).reconstruct(truth)
        error = (drawn.double() - truth.double()).numpy()
        scores.append(-10 * np.log10((error**2).mean()))
        assert f"{path}  {scores[-1]:.2f} dB" in printed
        picture, (height, width) = pixels(f"out/{path.stem}_panel.png"), truth.shape[-2:]
        assert picture.shape[0] == height
        assert np.array_equal(picture[:, :width], pixels(path))
        shown = (drawn[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        column = width + (picture.shape[1] - 4 * width) // 3  # four tiles with three gaps
        assert np.array_equal(picture[:, column : column + width], shown)
    assert f"mean PSNR of 2: {np.mean(scores):.2f} dB" in printed


def test_reconstruct_of_a_folder_keeps_its_structure_and_names_what_it_skips(
    encoder: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", "photos", "--encoder", encoder, "--out", "out"]) == 0
    assert written("out") == ["a_panel.png", "b_panel.png", "sub/c_panel.png"]
    error = capsys.readouterr().err
    assert "skipped: photos/broken.jpg: not a readable image" in error
    assert "skipped 1 of 4 files" in error


def test_equal_names_do_not_overwrite_each_other(encoder: str, photos: Path) -> None:
    os.rename("photos/sub/c.png", "photos/sub/a.png")
    assert main(["reconstruct", "photos/a.png", "photos/sub/a.png", "--encoder", encoder, "--out", "out"]) == 0
    assert [pixels(f"out/{name}").shape[0] for name in ("a_panel.png", "a-2_panel.png")] == [24, 30]
    os.rename("photos/b.png", "photos/a-2.png")
    photographs = ["photos/a.png", "photos/sub/a.png", "photos/a-2.png"]
    assert main(["reconstruct", *photographs, "--encoder", encoder, "--out", "three"]) == 0
    assert written("three") == ["a-2-2_panel.png", "a-2_panel.png", "a_panel.png"]


def test_reconstruct_at_another_size_and_scale(encoder: str, photos: Path) -> None:
    assert main(["reconstruct", "photos/a.png", "--encoder", encoder, "--out", "out", "--size", "16", "--scale", "3"]) == 0
    assert written("out") == ["a_panel.png", "a_x3.png"]
    assert pixels("out/a_panel.png").shape[0] == 16
    assert pixels("out/a_x3.png").shape == (3 * 16, 3 * 26, 3)  # 24x40 with a shorter side of 16 is 16x26


def test_photos_are_drawn_in_tiles(encoder: str, photos: Path) -> None:
    """30x21 pixels in tiles of at most 20, which are 16 and 14 times 8 and 13; scaled, each where it belongs."""
    assert main(["reconstruct", "photos/sub/c.png", "--encoder", encoder, "--out", "out", "--tile", "20", "--scale", "2"]) == 0
    truth, model = as_tensor("photos/sub/c.png"), huvr.load(encoder)
    drawn, larger = torch.zeros(3, 30, 21), torch.zeros(3, 60, 42)
    for top, bottom in ((0, 16), (16, 30)):
        for left, right in ((0, 8), (8, 21)):
            part = truth[..., top:bottom, left:right]
            with torch.no_grad():
                decoded, size = model.expand(model.compress(model.encode(part))), (bottom - top, right - left)
                drawn[:, top:bottom, left:right] = model.render(decoded, size)[0]
                larger[:, 2 * top : 2 * bottom, 2 * left : 2 * right] = model.render(decoded, size, 2)[0]
    panel = pixels("out/c_panel.png")
    for found, expected in ((panel[:, 21 + 4 : 2 * 21 + 4], drawn), (pixels("out/c_x2.png"), larger)):
        np.testing.assert_allclose(found, 255 * expected.clamp(0, 1).permute(1, 2, 0).numpy(), atol=0.51)


@pytest.mark.parametrize("side", [90, 91])
def test_of_a_large_photo_tiles_are_advised(encoder: str, photos: Path, side: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of more than 8 times the 32x32 pixels of the network."""
    Image.new("RGB", (side, side)).save("photos/large.png")
    for tile in ([], ["--tile", "32"]):
        assert main(["reconstruct", "photos/large.png", "--encoder", encoder, "--out", "out", *tile]) == 0
        advised = "photos/large.png: 91x91 pixels; --tile 32 would take less time" in capsys.readouterr().err
        assert advised == (side == 91 and not tile)


@pytest.mark.parametrize(
    ("side", "tile", "lengths"),
    [(30, 20, [16, 14]), (64, 64, [64]), (65, 64, [32, 33]), (7, 16, [7]), (80, 24, [16, 24, 16, 24])],
)
def test_tiles_are_of_whole_patches_and_alike(side: int, tile: int, lengths: list[int]) -> None:
    assert [piece.stop - piece.start for piece in pieces(side, tile, 8)] == lengths


def test_refined_tintoks_draw_better(encoder: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for steps in "0", "5":
        assert main(["reconstruct", "photos/a.png", "--encoder", encoder, "--out", "out", "--refine", steps]) == 0
        assert main(["encode", "photos", "--encoder", encoder, "--out", f"{steps}.parquet", "--refine", steps]) == 0
        scores.append(float(re.search(r"a\.png  (\S+) dB", capsys.readouterr().out)[1]))  # type: ignore[index]
    assert scores[1] > scores[0]
    model, truth = huvr.load(encoder), as_tensor("photos/a.png")
    plain, refined = (pq.read_table(f"{steps}.parquet").to_pylist()[0] for steps in "05")
    assert plain["patches"] == refined["patches"]  # the standard tokens
    with torch.no_grad():
        expected = model.refine(model.compress(model.encode(truth)), truth, 5)
    np.testing.assert_allclose(np.array(refined["tintok_patches"], float), expected.patches[0].numpy(), rtol=0.01, atol=0.01)
    assert not np.allclose(np.array(plain["tintok_patches"], float), expected.patches[0].numpy(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["standard", "tintok", "both"])
def test_encode_writes_the_tokens_of_the_network(encoder: str, photos: Path, kind: str) -> None:
    assert main(["encode", "photos", "--encoder", encoder, "--out", "new/tokens.parquet", "--tokens", kind]) == 0
    table = pq.read_table("new/tokens.parquet")
    assert table.schema.metadata[b"encoder"].decode() == encoder
    assert table["path"].to_pylist() == ["a.png", "b.png", "sub/c.png"]
    assert ("cls" in table.column_names) == (kind != "tintok")
    assert ("tintok_cls" in table.column_names) == (kind != "standard")
    model = huvr.load(encoder)
    for row in table.to_pylist():
        image = as_tensor(photos / row["path"])
        with torch.inference_mode():
            standard = model.encode(image)
            tintoks = model.compress(standard)
        assert (row["height"], row["width"], row["grid_h"], row["grid_w"]) == (*image.shape[-2:], *standard.grid)
        for prefix, tokens in ("", standard), ("tintok_", tintoks):
            for name in (f"{prefix}cls", f"{prefix}patches"):
                if name in row:
                    expected = getattr(tokens, name.removeprefix(prefix))[0].numpy()
                    np.testing.assert_allclose(np.array(row[name], np.float32), expected, rtol=2**-10, atol=1e-5)


def test_encode_names_and_counts_what_it_skips(encoder: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "photos", "--encoder", encoder, "--out", "tokens.parquet"]) == 0
    done = capsys.readouterr()
    assert "skipped: photos/broken.jpg: not a readable image" in done.err
    assert "skipped 1 of 4 files" in done.err
    assert done.out == "tokens of 3 images in tokens.parquet\n"


def test_row_groups_and_batches_change_no_token(encoder: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huvr.commands import encode as module

    assert main(["encode", "photos", "--encoder", encoder, "--out", "whole.parquet"]) == 0
    monkeypatch.setattr(module, "ROWS", 1)
    assert main(["encode", "photos", "--encoder", encoder, "--out", "pieces.parquet", "--batch_size", "1"]) == 0
    assert (pq.ParquetFile("whole.parquet").num_row_groups, pq.ParquetFile("pieces.parquet").num_row_groups) == (1, 3)
    whole, pieces = (pq.read_table(f"{name}.parquet").to_pylist() for name in ("whole", "pieces"))
    for one, other in zip(whole, pieces, strict=True):
        assert one["path"] == other["path"]
        np.testing.assert_allclose(np.array(one["patches"], float), np.array(other["patches"], float), rtol=2**-9, atol=1e-4)


def test_convert_there_and_back(encoder: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    HUVR(replace(huvr.load(encoder).config, modulation="released")).save("ours")
    assert main(["convert", "ours", "--out", "theirs", "--to", "released"]) == 0
    assert capsys.readouterr().out == "ours → theirs\n"
    assert main(["convert", "theirs", "--out", "back"]) == 0
    first, released, last = (load_file(f"{folder}/model.safetensors") for folder in ("ours", "theirs", "back"))
    assert first.keys() != released.keys()
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


MISTAKES = [
    ("reconstruct none.png", r"none\.png: no such file"),
    ("reconstruct photos/a.png none.png", r"none\.png: no such file"),
    ("reconstruct photos/broken.jpg", r"photos/broken\.jpg: not a readable image"),
    ("reconstruct empty", r"empty: no images in this folder"),
    ("reconstruct photos/a.png --scale 0", "scale 0: expected 1 or more"),
    ("reconstruct photos/a.png --scale two", "scale: expected int, got 'two'"),
    ("reconstruct photos/a.png --size 0", "size 0: expected 1 or more"),
    ("reconstruct photos/a.png --refine -1", "refine -1: expected 0 or more"),
    ("reconstruct photos/a.png --tile 7", "tile 7: expected 8 pixels, those of a patch, or more"),
    ("encode photos --out x.parquet --refine -1", "refine -1: expected 0 or more"),
    ("encode photos --out x.parquet --tokens standard --refine 5", "refine 5: it is of TinToks, and tokens standard writes none"),
    ("reconstruct photos/a.png --scal 2", r"unknown option scal: did you mean scale\?"),
    ("reconstruct photos/a.png --out file", "cannot write .*file/a_panel.png"),
    ("reconstruct photos/a.png --out file/x", "cannot write .*file/x/a_panel.png"),
    ("reconstruct photos/a.png --encoder none", "none: no such file or directory"),
    ("reconstruct photos/a.png --encoder file", "file: not a file of weights"),
    ("reconstruct photos/a.png --encoder empty", "empty: no weights found here"),
    ("reconstruct photos/a.png --encoder other.ckpt", "other.ckpt: a Lightning checkpoint of something else"),
    ("reconstruct photos/a.png --encoder broken.safetensors", "broken.safetensors: not a readable safetensors file"),
    ("encode none", "none: no such folder"),
    ("encode photos/a.png", "photos/a.png: no such folder"),
    ("encode empty", "empty: no images in this folder"),
    ("encode corrupt", "none of the 1 files is an image"),
    ("encode photos --tokens bth", "tokens: expected 'standard' or 'tintok' or 'both', got 'bth'"),
    ("encode photos --batch_size 0", "batch_size 0: expected 1 or more"),
    ("encode photos --out empty", "cannot write empty: it is a folder"),
    ("encode photos --out file/t.parquet", "cannot write .*file/t.parquet"),
    ("convert file", "file: not a file of weights"),
    ("convert photos/net --to released", "only networks with modulation 'released'"),
    ("convert photos/net --out photos", "photos exists already"),
    ("convert photos/net --out file/x", "cannot write .*file/x"),
    ("convert photos/net --to realesed", "to: expected 'huvr' or 'released', got 'realesed'"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes(encoder: str, photos: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    Path("file").write_text("")
    Path("empty").mkdir()
    Path("corrupt").mkdir()
    Path("corrupt/x.png").write_bytes(b"no image")
    Path("broken.safetensors").write_bytes(b"no tensors")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, "other.ckpt")
    Path("photos/net").symlink_to(encoder)
    arguments = line.split()
    if "--out" not in arguments:
        arguments += ["--out", "out"]
    if "--encoder" not in arguments and arguments[0] != "convert":
        arguments += ["--encoder", encoder]
    before = written(".")
    assert re.match(message, error_of(capsys, *arguments))
    assert written(".") == before
    assert not Path("out").exists()


@pytest.mark.parametrize("line", ["encode photos", "export", "convert photos"])
def test_a_missing_option_is_named(photos: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert error_of(capsys, *line.split()) == "the following arguments are required: out"


def test_reconstruct_of_a_folder_leaves_out_what_it_drew_there(
    encoder: str, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for _ in range(2):
        assert main(["reconstruct", ".", "--encoder", encoder]) == 0
        assert "mean PSNR of 3: " in capsys.readouterr().out
    assert main(["reconstruct", "out", "--encoder", encoder, "--out", "out"]) == 0  # unless they are meant
    assert "mean PSNR of 3: " in capsys.readouterr().out


def test_encode_names_a_file_whose_name_is_no_text(encoder: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a.png").rename(os.fsdecode(b"photos/caf\xe9.png"))
    error = error_of(capsys, "encode", "photos", "--encoder", encoder, "--out", "tokens.parquet")
    assert error == "b'photos/caf\\xe9.png': a name that is not UTF-8, which no Parquet file can hold: rename it"
    assert not Path("tokens.parquet").exists()


def test_a_terminated_verb_leaves_nothing_half_written(encoder: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stopped(pieces: object, target: Path) -> int:
        target.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("huvr.commands.encode.write", stopped)
    assert main(["encode", "photos", "--encoder", encoder, "--out", "tokens/all.parquet"]) == 143
    assert not Path("tokens").exists()
    assert signal.getsignal(signal.SIGTERM) is before
