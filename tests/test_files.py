"""Files are read without trust and written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from huvr.errors import HuvrError
from huvr.files import read_json, read_safetensors, read_torch, whole, write_safetensors, write_torch


class Interruption(Exception):
    """In the middle of writing."""


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "some" / "folder" / "file.txt"
    with whole(target) as temporary:
        temporary.write_text("text")
        assert not target.exists()
        assert temporary.parent == target.parent  # one file system, so that it can be renamed
    assert target.read_text() == "text"
    assert everything(tmp_path) == ["some", "some/folder", "some/folder/file.txt"]


def test_a_file_is_replaced_and_kept_where_that_fails(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    for text in ("old", "new"):
        with whole(target) as temporary:
            temporary.write_text(text)
    with pytest.raises(Interruption), whole(target) as temporary:  # noqa: PT012 (the block is what is tested)
        temporary.write_text("half")
        raise Interruption
    assert target.read_text() == "new"
    assert everything(tmp_path) == ["file.txt"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    """Such as last.ckpt, which a ModelCheckpoint may have made a link to the best one."""
    (tmp_path / "best.ckpt").write_text("best")
    (tmp_path / "last.ckpt").symlink_to("best.ckpt")
    with whole(tmp_path / "last.ckpt") as temporary:
        temporary.write_text("last")
    assert (tmp_path / "best.ckpt").read_text() == "best"
    assert (tmp_path / "last.ckpt").read_text() == "last"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(HuvrError, match=f"cannot write {target}: it is neither a file nor a folder"), whole(target):
            pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError()])
@pytest.mark.parametrize("directory", [False, True])
def test_nothing_remains_of_a_failure(tmp_path: Path, error: BaseException, directory: bool) -> None:
    target = tmp_path / "new" / "folders" / "target"

    def write() -> None:
        with whole(target) as temporary:
            if directory:
                temporary.mkdir()
                (temporary / "first").write_text("done")
            else:
                temporary.write_text("half")
            raise error

    message = f"^cannot write {target}: No space left on device$" if isinstance(error, OSError) else None
    with pytest.raises(HuvrError if isinstance(error, OSError) else type(error), match=message):
        write()
    assert everything(tmp_path) == []


def test_a_directory_takes_an_empty_place_only(tmp_path: Path) -> None:
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    with whole(tmp_path / "empty") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    with pytest.raises(HuvrError, match=r"cannot write .*full: Directory not empty"), whole(tmp_path / "full") as temporary:
        temporary.mkdir()
    assert everything(tmp_path) == ["empty", "empty/file", "full", "full/file"]


def test_a_target_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(HuvrError, match=r"cannot write .*: .*/file is a file, not a folder"),
        whole(tmp_path / "file" / "a" / "b"),
    ):
        pass
    assert everything(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_a_writer_that_fails_raises_an_os_error(tmp_path: Path, write: Any) -> None:
    with pytest.raises(OSError, match=r"."):
        write({"a": torch.zeros(2)}, tmp_path / "missing" / "file")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 2), "b": torch.arange(4)}
    write_safetensors(tensors, tmp_path / "a.safetensors", {"note": "x"})
    write_torch({"model": tensors, "epoch": 3, "name": "x"}, tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, None]}))
    assert load_file(tmp_path / "a.safetensors").keys() == read_safetensors(tmp_path / "a.safetensors").keys() == tensors.keys()
    content = read_torch(tmp_path / "a.pth")
    assert (content["epoch"], content["name"]) == (3, "x")
    for name, tensor in tensors.items():
        assert torch.equal(read_safetensors(tmp_path / "a.safetensors")[name], tensor)
        assert torch.equal(content["model"][name], tensor)
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_whoever_may_read_other_files_may_read_weights(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_safetensors({"x": torch.ones(2)}, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    file, proof = tmp_path / "evil.pth", tmp_path / "proof"
    torch.save({"model": {"weight": torch.zeros(2)}, "cfg": Code(proof)}, file)
    with pytest.raises(HuvrError) as caught:
        read_torch(file)
    assert str(caught.value) == f"{file}: not a checkpoint of tensors and plain values alone, and nothing else is loaded"
    assert not proof.exists()
    torch.load(file, weights_only=False)
    assert proof.exists()  # there was code in it


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    safe, pickled = tmp_path / "a.safetensors", tmp_path / "a.pth"
    save_file({"a": torch.zeros(1000)}, safe)
    torch.save({"a": torch.zeros(1000)}, pickled)
    cut(safe, share)
    cut(pickled, share)
    with pytest.raises(HuvrError, match=r"a\.safetensors: not a readable safetensors file \([^\n]+\)$"):
        read_safetensors(safe)
    with pytest.raises(HuvrError, match=r"a\.pth: not a (readable )?checkpoint[^\n]+$"):
        read_torch(pickled)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a readable JSON file"), ("", "not a readable JSON file"), ("[1]", "expected a JSON object, found a list")],
)
def test_json_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HuvrError, match=rf"config\.json: {message}"):
        read_json(tmp_path / "config.json")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HuvrError, match="not a readable JSON file"):
        read_json(tmp_path / "config.json")


def test_a_checkpoint_is_a_dictionary(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "a.pth")
    with pytest.raises(HuvrError, match=r"a\.pth: expected a dictionary, found a list"):
        read_torch(tmp_path / "a.pth")


@pytest.mark.parametrize("read", [read_json, read_safetensors, read_torch])
def test_missing_files(tmp_path: Path, read: Any) -> None:
    with pytest.raises(HuvrError, match=r"gone: not a readable [^\n]*No such file"):
        read(tmp_path / "gone")


def test_what_a_killed_writer_left_is_no_part_of_the_next_folder(tmp_path: Path) -> None:
    with whole(tmp_path / "pictures") as first:
        first.mkdir()
    (tmp_path / "pictures").rename(first)  # as it was before, and a container gives each process the same number
    (first / "1.png").touch()
    with whole(tmp_path / "pictures") as second:
        second.mkdir()
        (second / "2.png").touch()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["2.png"]
