"""A task of another package, installed by pip into an environment of its own and run there by its name."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "brightness"
version = "1.2"

[project.entry-points."huvr.tasks"]
brightness = "brightness.tasks:Brightness"

[tool.setuptools.package-data]
brightness = ["*.yaml"]
"""
MODULE = '''
from huvr.tasks.base import EncoderConfig, FrozenEncoderTask


class Brightness(FrozenEncoderTask):
    """Mean of the features, scaled."""

    def __init__(self, encoder: EncoderConfig, scale: float) -> None:
        super().__init__(encoder)
        self.scale = scale

    def test_step(self, batch, index) -> None:
        for features, labels in batch.pieces():
            self.log("mean", self.scale * features.mean(), batch_size=len(batch))
'''
PROTOCOL = """
model: {scale: 0.0}
data: {resize: 34, crop: 32}
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_task_comes_with_a_package(encoder: str, pictures: Path, tmp_path: Path) -> None:
    package, environment = tmp_path / "package", tmp_path / "environment"
    (package / "brightness").mkdir(parents=True)
    (package / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__.py": "", "tasks.py": MODULE, "brightness.yaml": PROTOCOL}.items():
        (package / "brightness" / name).write_text(text)
    venv.create(environment)
    python = environment / "bin" / "python"
    # It sees what is installed here, an editable huvr too, which is why a bare path would not do.
    inner = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(inner) / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation", package)

    assert "brightness" in run(python, "-m", "huvr", "tasks")
    small = ["--data.root", pictures, "--data.workers", "0", "--run", "there"]
    run(python, "-m", "huvr", "probe", "--task", "brightness", "--encoder", encoder, *small)
    record = json.loads(Path("there/record.json").read_text())
    assert (record["task"], record["package"], record["metrics"]) == ("brightness", "brightness", {"mean": 0.0})
    assert record["config"]["data"]["init_args"]["crop"] == 32  # of its own protocol
    assert "brightness" not in run(sys.executable, "-m", "huvr", "tasks")  # only there
