"""Every mistake a user can make is one line and exit status 2; a run leaves its folder as promised."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from huvr.cli import main
from huvr.commands.calm import worth_reading
from huvr.commands.training import TrainingCLI
from huvr.errors import HuvrError
from huvr.model import HUVRConfig

HERE = Path(__file__).stem


class TinyModel(LightningModule):
    """Stands for any task's module; it saves its hyper-parameters, as a task may."""

    def __init__(self, net: HUVRConfig, lr: float = 0.1, width: int = 2, fault: str = "none") -> None:
        super().__init__()
        self.save_hyperparameters()
        if lr < 0:
            raise HuvrError("lr must be positive")
        self.lr, self.fault = lr, fault
        self.layer = nn.Linear(1, width)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.fault == "ctrl-c":
            raise KeyboardInterrupt
        if self.fault == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.fault == "bug":
            raise ZeroDivisionError
        return self.layer(batch).square().mean()

    def test_step(self, batch: Any, index: int) -> None:
        self.log("lr", self.lr)

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Writer(Callback):
    def on_predict_batch_end(self, *arguments: Any) -> None:
        pass


class BrokenData(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        raise HuvrError("photo.jpg: not a readable image")


class TinyData(LightningDataModule):
    def __init__(self, root: str = "photos", broken: bool = False) -> None:
        super().__init__()
        self.broken = broken

    def train_dataloader(self) -> DataLoader:
        return DataLoader(BrokenData(), num_workers=1) if self.broken else DataLoader(torch.ones(4, 1))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


CONFIG: dict[str, Any] = {
    "model": {"class_path": f"{HERE}.TinyModel", "init_args": {"lr": 0.2, "net": {"tintok_dim": 8}}},
    "data": {"class_path": f"{HERE}.TinyData"},
    "trainer": {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with tiny.yaml in it."""
    monkeypatch.chdir(tmp_path)
    write("tiny.yaml", {})
    return tmp_path


def write(name: str, changes: dict[str, Any]) -> None:
    Path(name).write_text(yaml.safe_dump(merged(CONFIG, changes)))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {**base, **changes}
    return {
        key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in both.items()
    }


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a call that must fail as a mistake of the user."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("huvr: error: ")]
    assert errors == lines[-1:], lines
    assert not any("Traceback" in line for line in lines)
    return errors[0].removeprefix("huvr: error: ")


def saved(run: str, verb: str = "fit") -> Any:
    return yaml.safe_load(Path(run, f"config_{verb}.yaml").read_text())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["nonsense"]])
def test_bare_answers_come_before_heavy_imports(arguments: list[str]) -> None:
    code = (
        f"import sys; from huvr.cli import main; status = main({arguments}); "
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (2 if arguments == ["nonsense"] else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_a_photograph_is_drawn_without_what_only_training_imports() -> None:
    code = (
        "import sys; from huvr.commands import encode, reconstruct; "
        "assert not {'lightning', 'datasets', 'torchmetrics'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FAULTS = """
import resource, sys
from huvr.cli import main

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
main(["--version"])
faults()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the malloc that is told is glibc's")
def test_large_blocks_of_memory_are_kept() -> None:
    """glibc gives them back, and their pages cost again each time."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split()[-2:])
    assert kept < plain / 10


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    from huvr.cli import TASKS, TOOLS, TRAINING

    assert main([]) == 0
    assert {*TRAINING, *TOOLS, *TASKS} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ["fit", "reconstruct", "encode", "convert", "report"])
def test_help_of_a_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: huvr {verb} ")


def test_help_of_model_and_data_lists_their_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, option in (
        (["--model.help"], "--model.net.tintok_dim"),
        (["--data.help"], "--data.streaming"),
        (["--config", "tiny.yaml", "--model.help"], "--model.fault"),
        (["--model.help", f"{HERE}.TinyModel"], "--model.fault"),
    ):
        assert main(["fit", *arguments]) == 0
        assert option in capsys.readouterr().out


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "recontruct") == "unknown verb 'recontruct': did you mean 'reconstruct'?"
    assert "choose one of fit" in error_of(capsys, "xyzzy")


def test_a_run_fills_its_folder(folder: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["tiny"]
    files = sorted(path.relative_to("runs/tiny").as_posix() for path in Path("runs/tiny").rglob("*") if path.is_file())
    assert "config_fit.yaml" in files
    assert [name for name in files if name.startswith("checkpoints/")] == ["checkpoints/last.ckpt"]
    assert any(name.startswith("events.out.tfevents") for name in files)
    content = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert saved("runs/tiny")["run"] == "runs/tiny"
    assert saved("runs/tiny")["seed_everything"] == 0


@pytest.mark.parametrize(
    "options", [["val_check_interval=2"], ["check_val_every_n_epoch=9"], ["check_val_every_n_epoch=9", "max_steps=2"]]
)
def test_the_end_of_a_training_is_saved_whenever_it_validates(folder: Path, options: list[str]) -> None:
    changed = [f"--trainer.{option}" for option in ["max_epochs=2", "max_steps=3", *options]]
    assert main(["fit", "--config", "tiny.yaml", *changed]) == 0
    content = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == (2 if "max_steps=2" in options else 3)


def test_where_a_run_goes(folder: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--run", "there"]) == 0
    assert Path("there/checkpoints/last.ckpt").is_file()
    write("placed.yaml", {"run": "elsewhere"})
    assert main(["fit", "--config", "placed.yaml"]) == 0
    assert Path("elsewhere/checkpoints/last.ckpt").is_file()
    shutil.rmtree("there/checkpoints")
    assert main(["fit", "--config", "there/config_fit.yaml"]) == 0  # a saved config runs again, in the same place
    assert not Path("runs").exists()


def test_own_checkpoints_go_to_the_run_folder(folder: Path) -> None:
    init = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}", "save_last": True}
    write("own.yaml", {"trainer": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": init}]}})
    assert main(["fit", "--config", "own.yaml"]) == 0
    assert sorted(path.name for path in Path("runs/own/checkpoints").iterdir()) == ["last.ckpt", "step=1.ckpt", "step=2.ckpt"]


def test_the_end_is_saved_beside_own_checkpoints(folder: Path) -> None:
    own = {"filename": "best", "save_weights_only": True, "every_n_train_steps": 3, "enable_version_counter": False}
    write("own.yaml", {"trainer": {"max_steps": 4, "callbacks": [{"class_path": "ModelCheckpoint", "init_args": own}]}})
    for steps in ("4", "5"):
        assert main(["fit", "--config", "own.yaml", "--ckpt_path", "auto", "--trainer.max_steps", steps]) == 0
        assert sorted(path.name for path in Path("runs/own/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
        content = torch.load("runs/own/checkpoints/last.ckpt", weights_only=True)
        assert (content["global_step"], len(content["optimizer_states"])) == (int(steps), 1)


def test_each_verb_keeps_its_own_config(folder: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    before = Path("runs/tiny/config_fit.yaml").read_text()
    assert main(["test", "--config", "tiny.yaml", "--model.lr", "0.7", "--ckpt_path", "auto"]) == 0
    assert Path("runs/tiny/config_fit.yaml").read_text() == before
    assert saved("runs/tiny", "test")["model"]["init_args"]["lr"] == 0.7
    assert main(["fit", "--config", "tiny.yaml", "--model.lr", "0.5", "--ckpt_path", "auto"]) == 0  # the same verb may
    assert saved("runs/tiny")["model"]["init_args"]["lr"] == 0.5
    with pytest.warns(UserWarning, match="test without --ckpt_path: of TinyModel with the weights that it begins with"):
        assert main(["test", "--config", "tiny.yaml"]) == 0


def test_predictions_that_nobody_would_write_are_a_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    predict = ["predict", "--config", "tiny.yaml", "--ckpt_path", "auto"]
    assert main(predict) == 2
    assert "TinyModel predicts no pictures: trainer.callbacks needs one that writes it" in capsys.readouterr().err
    assert main([*predict, "--trainer.callbacks+", f"{HERE}.Writer"]) == 0


def test_saved_hyper_parameters_do_not_beat_the_config_or_the_command_line(folder: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--model.lr", "0.9"]) == 0
    file = "runs/tiny/checkpoints/last.ckpt"
    assert torch.load(file, weights_only=True)["hyper_parameters"]["lr"] == 0.9
    for extra, lr in ([], 0.2), (["--model.lr", "0.4"], 0.4):
        assert main(["test", "--config", "tiny.yaml", "--ckpt_path", file, *extra]) == 0
        assert saved("runs/tiny", "test")["model"]["init_args"]["lr"] == lr


def test_short_names_reach_into_subclasses(folder: Path) -> None:
    short = ["--model.net.tintok_dim", "16", "--data.root", "x", "--trainer.max_steps=1"]
    assert main(["fit", "--config", "tiny.yaml", *short]) == 0
    config = saved("runs/tiny")
    assert config["model"]["init_args"]["net"]["tintok_dim"] == 16
    assert config["data"]["init_args"]["root"] == "x"
    assert config["trainer"]["max_steps"] == 1


def test_a_class_that_is_named_inherits_no_defaults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringModel\n\n\n"
        "class Other(BoringModel):\n"
        "    def __init__(self, lr: float = 7.0, warmup: float = 0.3) -> None:\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(folder)
    Path("other.yaml").write_text(BORING.replace("lightning.pytorch.demos.boring_classes.BoringModel", "other.Other"))
    small = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.logger=false"]
    by_option = ["--model", "other.Other", "--data", "lightning.pytorch.demos.boring_classes.BoringDataModule"]
    for named in (["--config", "other.yaml"], by_option):
        run = f"there/{len(named)}"
        assert main(["fit", *named, *small, "--run", run]) == 0
        assert saved(run)["model"]["init_args"] == {"lr": 7.0, "warmup": 0.3}


def test_callbacks_replace_and_callbacks_plus_appends(folder: Path) -> None:
    summary, monitor = {"class_path": "ModelSummary"}, {"class_path": "LearningRateMonitor"}
    write("own.yaml", {"trainer": {"enable_model_summary": True, "callbacks": [summary]}})
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [monitor]}}))
    Path("other.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [monitor]}}))
    again = ["--ckpt_path", "auto"]
    for config, expected in ("more.yaml", ["ModelSummary", "LearningRateMonitor"]), ("other.yaml", ["LearningRateMonitor"]):
        assert main(["fit", "--config", "own.yaml", "--config", config, *again]) == 0
        names = [each["class_path"].rpartition(".")[2] for each in saved("runs/own")["trainer"]["callbacks"]]
        assert names == expected
    assert main(["fit", "--config", "own.yaml", "--trainer.callbacks+=LearningRateMonitor", *again]) == 0
    assert len(saved("runs/own")["trainer"]["callbacks"]) == 2
    assert main(["fit", "--config", "tiny.yaml", "--trainer.callbacks", "LearningRateMonitor"]) == 0


def test_links_stay_out_of_what_is_saved(folder: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    first = saved("runs/tiny")
    assert "default_root_dir" not in first["trainer"]
    content = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert {name for name in content["hyper_parameters"] if not name.startswith("_")} == {"net", "lr", "width", "fault"}
    Path("runs/tiny").rename("moved")
    assert main(["fit", "--config", "moved/config_fit.yaml"]) == 0
    assert saved("runs/tiny") == first


def test_a_training_is_not_replaced_by_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    last = Path("runs/tiny/checkpoints/last.ckpt")
    before = last.read_bytes()
    assert main(["fit", "--config", "tiny.yaml"]) == 2
    line = "run folder runs/tiny holds a training (checkpoints/last.ckpt): --ckpt_path auto goes on with it"
    assert line in capsys.readouterr().err
    assert main(["fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true"]) == 0  # writes none
    assert main(["fit", "--config", "tiny.yaml", "--trainer.enable_checkpointing", "false"]) == 0
    assert main(["fit", "--config", "tiny.yaml", "--run", "other"]) == 0
    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", "other/checkpoints/last.ckpt"]) == 2
    assert line in capsys.readouterr().err
    assert last.read_bytes() == before
    last.write_bytes(Path("other/checkpoints/last.ckpt").read_bytes())
    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", str(last), "--trainer.max_steps", "3"]) == 0


def test_auto_begins_anew_beside_weights_alone(folder: Path) -> None:
    own = {"filename": "{step}", "save_weights_only": True, "every_n_train_steps": 1, "save_top_k": -1}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": own}]
    write("own.yaml", {"trainer": {"max_steps": 2, "callbacks": callbacks}})
    assert main(["fit", "--config", "own.yaml"]) == 0
    Path("runs/own/checkpoints/last.ckpt").unlink()  # as after a crash before the first one
    with pytest.warns(UserWarning, match="of weights alone .* passed over"):
        assert main(["fit", "--config", "own.yaml", "--ckpt_path", "auto"]) == 0


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_on_slurm_what_a_requeued_job_left_is_not_taken_unasked(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning would."""
    left = Path("runs/tiny/hpc_ckpt_1.ckpt")
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr("huvr.commands.checkpoints.SLURMEnvironment.detect", staticmethod(lambda: True))
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([verb, "--config", "tiny.yaml"]) == 2
    assert "runs/tiny/hpc_ckpt_1.ckpt: left by a job that was requeued; --ckpt_path auto takes it" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    Path("runs/tiny").mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", held, "runs/tiny/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        other.stdout.readline()
        assert main(["fit", "--config", "tiny.yaml"]) == 2
        assert "run folder runs/tiny: another training is at work there" in capsys.readouterr().err
        other.communicate("\n")
    assert main(["fit", "--config", "tiny.yaml"]) == 0


def test_averages_lie_where_the_weights_are_trained(folder: Path) -> None:
    cli = TrainingCLI("fit", ["--config", "tiny.yaml", "--trainer.callbacks", "EMAWeightAveraging"])
    (average,) = (each for each in cli.trainer.callbacks if isinstance(each, EMAWeightAveraging))
    assert average._device == torch.device("cpu")


def test_wherever_loggers_write_a_run_stays_in_its_folder(folder: Path) -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "elsewhere"]
    assert main(["fit", "--config", "tiny.yaml", *logger]) == 0
    assert sorted(path.name for path in Path("runs/tiny").iterdir() if path.name != ".lock") == ["checkpoints", "config_fit.yaml"]
    assert main(["fit", "--config", "tiny.yaml", *logger]) == 2  # it holds a training
    assert main(["fit", "--config", "tiny.yaml", *logger, "--ckpt_path", "auto", "--trainer.max_steps", "5"]) == 0
    assert torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.barebones=true", "trainer.barebones: not supported"),
        ("--trainer.overfit_batches=2", "trainer.overfit_batches: not supported"),
        ("--trainer.callbacks=BatchSizeFinder", "trainer.callbacks: BatchSizeFinder is not supported"),
        ("--trainer.callbacks=LearningRateFinder", "trainer.callbacks: LearningRateFinder is not supported"),
    ],
)
def test_what_is_not_supported_is_one_line(folder: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "tiny.yaml", option]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_metric_that_nobody_logs_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/psnrr"]
    assert main(["fit", "--config", "tiny.yaml", *stop, "--trainer.callbacks.check_on_train_epoch_end", "true"]) == 2
    assert "trainer.callbacks: Early stopping conditioned on metric `val/psnrr` which is not" in capsys.readouterr().err


def test_a_run_without_a_config_is_named_after_the_verb(folder: Path) -> None:
    options = ["--model", f"{HERE}.TinyModel", "--model.net.tintok_dim=8", "--data", f"{HERE}.TinyData"]
    assert main(["fit", *options, "--trainer.max_steps=1", "--trainer.accelerator=cpu"]) == 0
    assert Path("runs/fit/checkpoints/last.ckpt").is_file()


def test_resuming_from_auto_takes_the_newest(folder: Path) -> None:
    from huvr.commands.checkpoints import find_checkpoint

    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", "auto"]) == 0  # nothing yet: fresh
    assert main(["fit", "--config", "tiny.yaml", "--ckpt_path", "auto", "--trainer.max_steps", "3"]) == 0
    content = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == 3  # 2 of the first run and 1
    run, last = Path("runs/tiny"), Path("runs/tiny/checkpoints/last.ckpt")
    for number in (9, 10):
        (run / f"hpc_ckpt_{number}.ckpt").write_bytes(last.read_bytes())
    for time, path in enumerate([last, run / "hpc_ckpt_9.ckpt", run / "hpc_ckpt_10.ckpt"]):
        os.utime(path, (time, time))
    assert find_checkpoint("auto", run, training=True) == run / "hpc_ckpt_10.ckpt"
    os.utime(last, (5, 5))
    assert find_checkpoint("auto", run, training=True) == last


def test_a_shipped_config_is_found_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huvr.commands import arguments

    shipped = folder / "shipped"
    (shipped / "generate").mkdir(parents=True)
    for name in ("tiny.yaml", "other.yaml", "generate/dit_b.yaml"):
        (shipped / name).write_text("run: here")
    monkeypatch.setattr(arguments, "files", lambda package: shipped)
    assert arguments.find_config("tiny.yaml") == Path("tiny.yaml")  # a local file comes first
    assert arguments.find_config("other.yaml") == shipped / "other.yaml"
    assert arguments.find_config("generate/dit_b.yaml") == shipped / "generate/dit_b.yaml"
    with pytest.raises(HuvrError, match=r"shipped generate/dit_b.yaml, other.yaml, tiny.yaml; did you mean other.yaml\?"):
        arguments.find_config("othr.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"init_args": {"lrr": 1}}}, "unknown option model.lrr: did you mean model.lr?"),
        (
            {"model": {"init_args": {"net": {"tintok_dims": 1}}}},
            "unknown option model.net.tintok_dims: did you mean model.net.tintok_dim?",
        ),
        ({"modle": {"lr": 1}}, "unknown option modle.lr: did you mean model.lr?"),
        ({"trainer": {"max_step": 1}}, "unknown option trainer.max_step: did you mean trainer.max_steps?"),
        ({"data": {"init_args": {"zzz": 1}}}, "unknown option data.zzz; allowed are data.broken, data.root"),
        ({"data": {"root": "x"}}, "data: beside class_path there is only init_args, which holds the options of the class"),
        ({"model": {"init_args": {"lr": "fast"}}}, "model.lr: expected float, got 'fast'"),
        (
            {"model": {"init_args": {"net": {"modulation": "fre"}}}},
            "model.net.modulation: expected 'free' or 'released', got 'fre'",
        ),
        ({"trainer": {"max_steps": "many"}}, "trainer.max_steps: expected int, got 'many'"),
        ({"trainer": {"default_root_dir": "x"}}, "trainer.default_root_dir follows from run: set run instead"),
        (
            {"model": {"class_path": f"{HERE}.Nothing"}},
            f"model: there is no class {HERE}.Nothing (module '{HERE}' has no attribute 'Nothing')",
        ),
        (
            {"model": {"class_path": "mine.Nothing"}},
            "model: there is no class mine.Nothing (No module named 'mine'; PYTHONPATH=. finds files of this folder)",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "ModelCheckpoints"}]}},
            "trainer.callbacks: there is no class ModelCheckpoints (not a dotted path such as package.module.Class)",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_lastt": True}}]}},
            "unknown option trainer.callbacks.save_lastt: did you mean trainer.callbacks.save_last?",
        ),
    ],
)
def test_mistakes_in_a_config(folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str) -> None:
    write("bad.yaml", changes)
    assert error_of(capsys, "fit", "--config", "bad.yaml") == f"bad.yaml: {message}"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {lr: [", "bad.yaml, line 1, column 14: not valid YAML: "),
        ("a: 1\n b: 2\n", "bad.yaml, line 2, column 3: not valid YAML: mapping values are not allowed"),
        ("- a\n- b\n", "bad.yaml: expected keys with values"),
        ("", "bad.yaml: expected keys with values"),
    ],
)
def test_files_that_are_no_config(folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    Path("bad.yaml").write_text(text)
    assert error_of(capsys, "fit", "--config", "bad.yaml").startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lrr", "3"], "unknown option model.lrr: did you mean model.lr?"),
        (["--model.init_args.lrr=3"], "unknown option model.lrr: did you mean model.lr?"),
        (["--model.tintok_dim", "3"], "unknown option model.tintok_dim: did you mean model.net.tintok_dim?"),
        (["--trainer.max_step", "3"], "unknown option trainer.max_step: did you mean trainer.max_steps?"),
        (["--data.roots", "x"], "unknown option data.roots: did you mean data.root?"),
        (["--dada.root", "x"], "unknown option dada.root: did you mean data.root?"),
        (["--model.lr", "fast"], "model.lr: expected float, got 'fast'"),
        (["--model.lr", "-1"], "lr must be positive"),
        (["--config"], "argument -c/--config: expected one argument"),
        (["--trainer.limit_train_batches", "2.5"], "You have passed invalid value 2.5 for limit_train_batches"),
        (["--ckpt_path", "none.ckpt"], "checkpoint none.ckpt: no such file"),
        (["--ckpt_path", "tiny.yaml"], "checkpoint tiny.yaml: not a .ckpt file of huvr fit"),
        (["--config", "nothing.yaml"], "config nothing.yaml: no such file, and not one of the shipped"),
        (["--run", "tiny.yaml/run"], "tiny.yaml/run: Not a directory"),
        (["--run", "tiny.yaml"], "tiny.yaml: "),
        (["--trainer.default_root_dir", "x"], "trainer.default_root_dir follows from run: set run instead"),
        (["--trainer.callbacks+=ModelSummaryy"], "trainer.callbacks: there is no class ModelSummaryy"),
        (["stray"], "unknown option stray"),
        (["--trainer.limit_val_batches", "x"], "or null, got 'x'"),  # the order of the types before varies
        (["--trainer.accelerator", "abacus"], "trainer: "),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches 0: expected 1 or more"),
        (["--trainer.val_check_interval", "100"], "trainer: `val_check_interval` (100) must be less than or equal"),
        (["--trainer.devices", "[a]"], "trainer: `devices`"),
        (["--seed_everything", "-1"], "seed_everything -1: expected 0 to 4294967295"),
        (["--data.broken", "true"], "photo.jpg: not a readable image"),
    ],
)
def test_mistakes_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in error_of(capsys, "fit", "--config", "tiny.yaml", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.root", "./nowhere"], "data root './nowhere': no such file or folder"),
        (["--data.root", "empty"], "empty: no images in this folder"),
        (["--data.batch_size", "500"], "batch_size 500 on 1 device(s) is more than the 3 training images"),
        (["--model.teachers", "[{name: test_vit, weights: none.pth}]"], "weights of test_vit: no such file: none.pth"),
        (["--model.teachers", "[{name: test_vit, wieghts: hub}]"], "unknown option model.teachers.wieghts: did you mean"),
        (["--model.weights.lpisp", "1"], "unknown option model.weights.lpisp: did you mean model.weights.lpips?"),
        (["--data.workers", "many"], "data.workers: expected int or null, got 'many'"),
        (["--model.decoder_tap", "9"], "decoder_tap 9: the decoder has layers 1 to 1"),
        (["--model.net.heads", "5"], "width 48, heads 5: each head needs the same width"),
        (["--model.net.tintok_dim", "0"], "tintok_dim 0: expected 1 or more"),
        (["--model.lr", "-1"], "lr -1.0: expected a positive number"),
    ],
)
def test_mistakes_in_pretraining(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    Path("photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40)).save(f"photos/{number}.png")
    net = {"image_size": 32, "patch": 8, "width": 48, "depth": 1, "heads": 3, "decoder_width": 48, "decoder_depth": 1}
    small = {"net": {**net, "decoder_hidden": 48, "inr_widths": [8, 8, 8]}}
    data = {"root": "./photos", "size": 32, "batch_size": 2, "workers": 0, "held_out": 0}
    config = {"model": {"init_args": small}, "data": {"init_args": data}, "trainer": CONFIG["trainer"]}
    Path("small.yaml").write_text(yaml.safe_dump(config))
    assert message in error_of(capsys, "fit", "--config", "small.yaml", *arguments)
    assert not Path("runs/small/checkpoints").exists()


def test_a_checkpoint_of_another_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    last = "runs/tiny/checkpoints/last.ckpt"
    message = error_of(capsys, "test", "--config", "tiny.yaml", "--ckpt_path", last, "--model.width", "3")
    assert message.startswith(f"checkpoint {last}: not of this model: ")
    assert "layer.weight" in message
    torch.save({"state_dict": {}}, "other.ckpt")
    message = error_of(capsys, "test", "--config", "tiny.yaml", "--ckpt_path", "other.ckpt")
    assert message == "checkpoint other.ckpt: not a .ckpt file of huvr fit"
    message = error_of(capsys, "test", "--config", "tiny.yaml", "--ckpt_path", "auto", "--run", "empty")
    assert message == "ckpt_path auto: no checkpoint in empty"


def test_a_bug_keeps_its_traceback(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--config", "tiny.yaml", "--model.fault", "bug"])


def test_ctrl_c(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", "--config", "tiny.yaml", "--model.fault", "ctrl-c"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has turned it off
    assert capsys.readouterr().err.splitlines()[-1] == "huvr: interrupted"


def test_sigterm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--model.fault", "sigterm"]) == 143
    line = "huvr: terminated after step 1; --ckpt_path auto goes on from the last checkpoint"
    assert capsys.readouterr().err.splitlines()[-1] == line


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_reader_that_has_seen_enough(buffering: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "huvr", "tasks"]
    environment = os.environ | {"PYTHONUNBUFFERED": buffering}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


BORING = """
model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}
data: {class_path: lightning.pytorch.demos.boring_classes.BoringDataModule}
trainer: {max_steps: 1, limit_val_batches: 0, log_every_n_steps: 1, accelerator: cpu}
"""


def in_a_terminal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "huvr", *arguments], capture_output=True, text=True)


def test_retries_of_the_hub_are_not_shown() -> None:
    told = (
        "'timed out' thrown while requesting HEAD https://huggingface.co/x",
        "Retrying in 1s [Retry 1/5].",
        "weights are gone",
    )
    records = [logging.makeLogRecord({"msg": text}) for text in told]
    assert [worth_reading(record) for record in records] == [False, False, True]


def test_the_terminal_stays_calm(folder: Path) -> None:
    Path("boring.yaml").write_text(BORING)
    assert in_a_terminal("fit", "--config", "boring.yaml").returncode == 0
    done = in_a_terminal("fit", "--config", "boring.yaml", "--ckpt_path", "auto", "--trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    for noise in ("Tip", "litlogger", "TPU", "deprecated", "not empty", "workers"):
        assert noise not in done.stderr
    assert "run folder: runs/boring" in done.stderr
    assert "GPU available: " in done.stderr  # news, not noise


def test_errors_in_a_terminal_are_one_line_and_status_2(folder: Path) -> None:
    for arguments, error in (
        (["fit", "--config", "tiny.yml"], "config tiny.yml: no such file, and not one of the shipped"),
        (["encode", "photos"], "the following arguments are required: out"),
    ):
        done = in_a_terminal(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"huvr: error: {error}")
        assert done.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]
