"""``huvr probe`` and ``huvr tasks``: the record, tasks of other packages, and mistakes in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from huvr.cli import main
from huvr.commands import tasks
from huvr.commands.probe import differing, run_folder, shortcuts

SMALL = ["--data.root", "pictures", "--data.resize", "34", "--data.crop", "32", "--data.workers", "0"]
FOREIGN = '''
"""Another package's task; it is imported only when it runs."""

from lightning.pytorch import LightningModule

from huvr.tasks.base import EncoderConfig, FrozenEncoderTask


class Length(FrozenEncoderTask):
    """Mean length of the features.

    More about it.
    """

    def __init__(self, encoder: EncoderConfig, factor: float = 1.0) -> None:
        super().__init__(encoder)
        self.factor = factor

    def test_step(self, batch, index) -> None:
        for features, labels in batch.pieces():
            self.log("length", self.factor * features.norm(dim=1).mean(), batch_size=len(batch))
        self.details["note"] = "from afar"


class Endless(FrozenEncoderTask):
    def training_step(self, batch, index) -> None: ...


class Plain(LightningModule):
    """No frozen encoder."""

    def __init__(self, encoder: str = "none") -> None:
        super().__init__()

    def test_step(self, batch, index) -> None:
        self.log("size", float(len(batch)))


WORD = "word"
'''


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the module path with two packages that bring tasks, as pip would have installed them."""
    folder = tmp_path / "site"
    for package, points in {
        "faraway": "\n".join(
            [
                "length = remote_task:Length",
                "knn = remote_task:Length",
                "endless = remote_task:Endless",
                "plain = remote_task:Plain",
                "word = remote_task:WORD",
            ]
        ),
        "broken": "lost = broken_task:Lost\nabsent = remote_task:Absent",
    }.items():
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[huvr.tasks]\n{points}\n")
    (folder / "remote_task.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(folder)
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a call that must fail as a mistake of the user."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("huvr: error: ")] == lines[-1:], lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1].removeprefix("huvr: error: ")


def test_a_task_may_call_something_else_its_encoder(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    boring = ["--data", "lightning.pytorch.demos.boring_classes.BoringDataModule", "--trainer.limit_test_batches", "2"]
    assert main(["probe", "--task", "plain", "--model.encoder", "eyes", "--run", "there", *boring]) == 0
    assert json.loads(Path("there/record.json").read_text())["encoder"] == "eyes"
    assert main(["report", "there", "--out", "r.html"]) == 0
    assert "| eyes |" in Path("r.md").read_text()


def test_tasks_are_listed_before_torch_is_imported(foreign: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(foreign)!r}); from huvr.cli import main; status = main(['tasks']); "
        "assert not {'torch', 'lightning', 'jsonargparse', 'remote_task'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    told = dict(lines)
    assert [*told] == sorted(tasks.installed())
    assert {"absent", "knn", "length", "lost"} <= told.keys()
    assert told["length"] == "Mean length of the features.  [faraway]"
    assert told["knn"] == "k-NN classification of cls tokens.  [huvr]"  # not taken over by the other package
    assert told["lost"] == "cannot be read (no module broken_task)  [broken]"
    assert told["absent"] == "no description  [broken]"


def test_a_task_of_another_package_runs_by_name(encoder: str, pictures: Path, foreign: Path) -> None:
    assert main(["probe", "--task", "length", "--encoder", encoder, "--run", "there", *SMALL, "--model.factor", "2"]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert (record["task"], record["package"], record["note"]) == ("length", "faraway", "from afar")
    assert record["config"]["model"]["init_args"]["factor"] == 2
    assert 10 < record["metrics"]["length"] < 20  # about twice the root of 48: the network ends in a LayerNorm


def test_a_probe_leaves_a_record(encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--task", "knn", "--encoder", encoder, "--tokens", "tintok", *SMALL, "--model.k", "[1, 5]"]) == 0
    (run,) = Path("runs/probe").iterdir()
    assert run.name.startswith("knn-")
    assert re.search("net-[0-9a-f]{8}-tintok-pictures-[0-9a-f]{8}$", run.name)
    record = json.loads((run / "record.json").read_text())
    assert record["metrics"].keys() == {"top1_k1", "mean_per_class_k1", "top1_k5", "mean_per_class_k5"}
    assert record["metrics"]["top1_k1"] == 100  # colours are easily told apart
    printed = capsys.readouterr().out
    assert all(f"{name:<17}{value:10.3f}" in printed for name, value in record["metrics"].items())
    assert (record["task"], record["package"]) == ("knn", "huvr")
    assert (record["encoder"], record["tokens"]) == (encoder, "tintok")
    assert record["version"] == version("huvr")
    assert record["commit"] is None or record["commit"].removesuffix("-dirty").isalnum()
    assert record["data"] == {"train": "pictures (train), 18 images", "test": "pictures (val), 6 images"}
    assert (record["bytes_per_image"], record["bytes_of_cls"]) == (2 * 8 * 17, 2 * 8)
    assert 0 < record["seconds"] < 60
    assert record["config"]["data"]["init_args"]["crop"] == 32


def test_probes_of_other_tokens_or_data_go_elsewhere(encoder: str, pictures: Path) -> None:
    probe = ["probe", "--task", "knn", "--encoder", encoder, *SMALL, "--model.k", "[1]"]
    pictures.rename("others")
    Path("pictures").symlink_to("others")
    for extra in [], ["--tokens", "standard"], ["--tokens=pca2"], ["--data.root", "others"]:
        assert main([*probe, *extra]) == 0
    assert len(list(Path("runs/probe").iterdir())) == 4
    assert main([*probe, "--run", "there"]) == 0
    assert Path("there/record.json").is_file()


def test_options_that_bear_on_the_figures_name_the_folder() -> None:
    def name(options: str) -> str:
        return run_folder(*shortcuts(["--task", "knn", "--encoder", "net", *options.split(" ")]))

    plain = name("--data.root pictures")
    assert plain == "runs/probe/knn-net-pictures"
    stored = name("--data.root pictures --model.encoder.stored int8")
    assert stored == name("--model.init_args.encoder.stored=int8 --data.root=pictures") == f"{plain}-model.encoder.stored=int8"
    others = ("--model.encoder.layer -1", "--config a/own.yaml", "--config a-own.yaml", "--model.k [1]", "--model.k [-1]")
    assert len({plain, stored, *(name(f"--data.root pictures {other}") for other in others)}) == 7
    assert len({name(f"--data.root {root}") for root in ("x", "../x", "/x", "x/y", "x-y")}) == 5
    deep = "2026-11-20_of_a_long_training_with_a_long_name/checkpoints/last.ckpt"
    assert len({name(f"--data.root pictures --encoder {net}/{deep}") for net in ("first", "second")}) == 2
    for same in ("--trainer.callbacks+=Timer", "--trainer.devices 1", "--ckpt_path auto", "--data.workers 0", "--data.cache c"):
        assert name(f"--data.root pictures {same}") == plain


def test_probes_that_are_trained_go_on_and_refuse_other_checkpoints(
    encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = ["probe", "--task", "logistic", "--encoder", encoder, *SMALL, "--trainer.max_epochs", "2", "--ckpt_path"]
    for _ in range(2):  # the second time from last.ckpt: best.ckpt holds weights alone
        assert main([*probe, "auto"]) == 0
        (run,) = Path("runs/probe").iterdir()
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert main([*probe, "auto", "--tokens", "tintok"]) == 0
    message = error_of(capsys, *probe, str(run / "checkpoints/last.ckpt"), "--tokens", "tintok")
    assert message == f"ckpt_path: trained on other tokens than {encoder} gives now; begin anew in another --run"


def test_the_record_of_a_probe_with_other_options_is_not_replaced(
    encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = ["probe", "--task", "logistic", "--encoder", encoder, *SMALL, "--trainer.max_epochs"]
    assert main([*probe, "1"]) == 0
    (run,) = Path("runs/probe").iterdir()
    before, there = (run / "record.json").read_text(), ["--run", str(run)]
    holds = f"run folder {run} holds the record of a probe with another"
    assert error_of(capsys, *probe, "2").startswith(f"{holds} trainer.max_epochs (1): --ckpt_path auto goes on with it; ")
    assert error_of(capsys, *probe, "1", "--tokens", "pca2", *there).startswith(f"{holds} model.encoder.tokens (standard): ")
    assert (run / "record.json").read_text() == before
    alike = ["--trainer.enable_progress_bar", "false", "--data.workers", "1", "--data.root", str(Path("pictures").resolve())]
    assert main([*probe, "1", *alike, *there]) == 0
    assert main([*probe, "2", "--ckpt_path", "auto"]) == 0
    assert json.loads((run / "record.json").read_text())["config"]["trainer"]["max_epochs"] == 2
    assert main([*probe, "3", "--run", "elsewhere"]) == 0
    of_another = ["--ckpt_path", "elsewhere/checkpoints/last.ckpt", *there]
    assert error_of(capsys, *probe, "3", *of_another).startswith(f"{holds} trainer.max_epochs (2): ")


def test_the_record_of_a_task_that_trains_nothing_is_not_replaced(
    encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = ["probe", "--task", "knn", "--encoder", encoder, *SMALL, "--run", "there", "--model.k"]
    assert main([*probe, "[1]"]) == main([*probe, "[1]"]) == 0
    holds = "run folder there holds the record of a probe with another model.k ([1]): to keep both choose another --run, "
    assert error_of(capsys, *probe, "[2]").startswith(holds)
    assert error_of(capsys, *probe, "[2]", "--ckpt_path", "auto").startswith(holds)


def test_options_that_differ() -> None:
    def config(root: str | None, arguments: dict[str, int], **options: Any) -> dict[str, Any]:
        model = {"class_path": "T", "init_args": {"encoder": {"arguments": arguments, "weights": "a"}} | options}
        return {"model": model, "data": {"init_args": {"root": root}}}

    def names(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        return [name for name, _ in differing(before, now)]

    assert names(config(".", {}), config(str(Path().resolve()), {}, new=3)) == []
    assert names(config(None, {}), config(None, {})) == []
    assert names(config(None, {"a": 1}), config("x", {"b": 1})) == ["data.root", "model.encoder.arguments"]
    assert names(config("x", {}, k=[1]), config("x", {"b": 1}, k=[2])) == ["model.encoder.arguments", "model.k"]


def test_two_probes_do_not_share_a_run_folder(encoder: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = ["probe", "--task", "logistic", "--encoder", encoder, *SMALL, "--run", "there"]
    Path("there").mkdir()
    held = (
        "import fcntl, sys; file = open('there/.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert error_of(capsys, *probe) == "run folder there: another training is at work there; choose another --run"
        other.communicate("\n")


def test_a_config_changes_the_protocol_and_options_change_both(encoder: str, pictures: Path) -> None:
    Path("own.yaml").write_text("model: {init_args: {encoder: {source: other}, k: [2, 3]}}\nrun: there\n")
    assert main(["probe", "--task", "knn", "--encoder", encoder, *SMALL, "--config", "own.yaml"]) == 0
    record = json.loads(Path("there/record.json").read_text())
    assert record["encoder"] == encoder
    assert record["metrics"].keys() == {"top1_k2", "mean_per_class_k2", "top1_k3", "mean_per_class_k3"}


def test_mistakes_are_one_line(
    encoder: str, pictures: Path, foreign: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = ", ".join(tasks.installed())
    assert error_of(capsys, "probe") == f"which task? --task with one of {installed}"
    assert error_of(capsys, "probe", "--task", "xyz") == f"unknown task 'xyz': installed are {installed}"
    assert error_of(capsys, "probe", "--task", "nkn") == f"unknown task 'nkn': did you mean 'knn'? Installed are {installed}"
    assert error_of(capsys, "probe", "--task") == "argument --task: expected one argument"
    assert error_of(capsys, "probe", "--task", "lost").startswith("task lost of broken cannot be imported: No module named")
    assert error_of(capsys, "probe", "--task", "absent").startswith("task absent of broken cannot be imported: ")
    assert error_of(capsys, "probe", "--task", "word") == "task word of faraway: remote_task:WORD is no LightningModule"
    endless = error_of(capsys, "probe", "--task", "endless", "--encoder", encoder, *SMALL)
    assert endless == "task endless trains: say for how long, by --trainer.max_epochs or --trainer.max_steps"
    plain = error_of(capsys, "probe", "--task", "plain", *SMALL)
    assert plain.endswith("of a huvr.tasks.base.FrozenEncoderTask, and this model is none; --data names other data")
    knn = ["probe", "--task", "knn", "--encoder", encoder, *SMALL]
    assert error_of(capsys, *knn, "--model.kk", "3") == "unknown option model.kk: did you mean model.k?"
    assert error_of(capsys, *knn, "--tokens", "tok").startswith("tokens 'tok': choose standard, tintok, decoder, or pca<d>")
    assert error_of(capsys, *knn, "--encoder", "nowhere").startswith("nowhere: no such file or directory; expected")
    assert error_of(capsys, *knn, "--encoder", str(foreign)).startswith(f"{foreign}: no weights found here")
    assert error_of(capsys, *knn, "--data.root", "nowhere/at/all").startswith("data root 'nowhere/at/all': no such file")
    assert error_of(capsys, *knn) == "k 200: there are only 18 training images; set fewer neighbours, as in --model.k [1]"
    assert error_of(capsys, "probe", "--task", "knn", "--encoder", encoder).startswith("which data? --data.root with")
    assert error_of(capsys, "tasks", "now") == "huvr tasks takes no options, got 'now'"
    assert not list(Path("runs").glob("probe/*/record.json"))


@pytest.mark.parametrize("options", [[], ["--task", "knn"]])
def test_help(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *options, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: huvr probe ")
