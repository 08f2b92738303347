"""Reading files without trusting them, writing files without leaving half of one behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huvr.errors import HuvrError, reason


@contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """A temporary path beside ``target`` to write a file or directory at; it becomes ``target`` once the block ends well.

    Missing parent folders are made. After an error inside the block nothing remains, nor do these folders. A link to a
    file is replaced, and what it leads to stays.

    Raises:
        HuvrError: where ``target`` cannot be written, or is a device, a pipe or a socket.
    """
    target = Path(target).absolute()
    if os.path.exists(target) and not (target.is_file() or target.is_dir()):
        raise HuvrError(f"cannot write {target}: it is neither a file nor a folder")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    missing = [folder for folder in target.parents if not os.path.exists(folder)]  # Path.exists raises where it may not look
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        nearest = next(folder for folder in target.parents if os.path.exists(folder))
        if not nearest.is_dir():
            raise HuvrError(f"cannot write {target}: {nearest} is a file, not a folder") from error
        raise HuvrError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for remove in (temporary.unlink, *(folder.rmdir for folder in missing)):
            with suppress(OSError):  # gone already, or a folder that holds the target
                remove()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HuvrError(f"{path}: not a readable JSON file ({_line(error)})") from None
    if not isinstance(content, dict):
        raise HuvrError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file, by name, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise HuvrError(f"{path}: not a readable safetensors file ({_line(error)})") from None


def write_safetensors(tensors: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Tensors by name, and a few notes, to a safetensors file.

    Raises:
        OSError: where it cannot be written, as for any other file (the library has an error of its own).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(_line(error)) from None
    path.chmod(mode)  # the library lets nobody but the owner read what it writes


def write_torch(content: dict[str, Any], path: Path) -> None:
    """``torch.save`` of tensors and plain values.

    Raises:
        OSError: where it cannot be written.
    """
    import torch

    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(_line(error)) from None


def read_torch(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A dictionary written by ``torch.save``: tensors and plain values only; code in it is never run.

    With ``mmap`` the tensors stay on the disk until they are looked at.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # torch's own message advises to load the code
        raise HuvrError(f"{path}: not a checkpoint of tensors and plain values alone, and nothing else is loaded") from None
    except Exception as error:  # a damaged archive can fail in any way
        raise HuvrError(f"{path}: not a readable checkpoint ({_line(error)})") from None
    if not isinstance(content, dict):
        raise HuvrError(f"{path}: expected a dictionary, found a {type(content).__name__}")
    return content


def _line(error: Exception) -> str:
    return reason(error).partition(". ")[0].rstrip(".")
