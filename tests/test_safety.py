"""Bad steps are skipped, and no checkpoint is lost: on a full disk, by a kill, by damage to the last one."""

from __future__ import annotations

import io
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos import BoringModel
from PIL import Image
from tiny_network import TINY
from torch import Tensor
from torch.utils.data import DataLoader

from huvr.cli import main
from huvr.commands.checkpoints import find_checkpoint
from huvr.data import Images
from huvr.errors import HuvrError
from huvr.optim import OptimizerName
from huvr.pretrain import Pretraining
from huvr.safety import LastCheckpoint, SkipNonFinite, WholeCheckpoints, total_norm


class Spoilt(Pretraining):
    """Its loss, its gradient or both are not finite in the batches named."""

    def __init__(self, batches: dict[int, str], **options: object) -> None:
        super().__init__(TINY, lr=0.1, warmup=0, pictures_every=0, **options)  # type: ignore[arg-type]
        self.batches, self.seen = batches, []  # type: ignore[var-annotated]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        match self.batches.get(batch_idx):
            case "nan":
                return loss * float("nan")
            case "inf loss alone":
                return loss + float("inf")
            case "gradient alone":
                return loss + (0 * next(self.parameters()).sum()).sqrt()  # 0, and its gradient is 0 / 0
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        self.seen.append({name: tensor.clone() for name, tensor in self.net.state_dict().items()})


def fit(folder: Path, module: Pretraining, limit: int = 3, resume: Path | None = None, **options: object) -> SkipNonFinite:
    pictures = torch.randint(256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    guard = SkipNonFinite(limit)
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=0.5, callbacks=[guard, checkpoints], plugins=[WholeCheckpoints()], **options,  # type: ignore[arg-type]
    )  # fmt: skip
    loader = DataLoader([{"image": picture} for picture in pictures])  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return guard


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tensors by name, and Muon keeps a flag beside them."""
    return all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])) for name, value in one.items())


@pytest.mark.parametrize("fault", ["nan", "inf loss alone", "gradient alone"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_without_a_finite_loss_and_gradient_changes_nothing(tmp_path: Path, fault: str, optimizer: OptimizerName) -> None:
    torch.manual_seed(0)
    module = Spoilt({2: fault}, optimizer=optimizer)
    with pytest.warns(UserWarning, match=r"step 2: loss or gradient is not finite, step skipped; 1 skipped so far"):
        guard = fit(tmp_path, module)
    assert (guard.skipped, guard.in_a_row) == (1, 0)
    assert same(module.seen[1], module.seen[2])
    for before, after in ((0, 1), (2, 3), (3, 4)):
        assert not same(module.seen[before], module.seen[after])
    assert all(tensor.isfinite().all() for tensor in module.seen[-1].values())
    before, after = (torch.load(tmp_path / f"step={n}.ckpt", weights_only=True)["optimizer_states"][0]["state"] for n in (2, 3))
    assert all(same(state, after[number]) for number, state in before.items())


def test_accumulated_batches_are_skipped_together(tmp_path: Path) -> None:
    module = Spoilt({2: "inf loss alone"})
    with pytest.warns(UserWarning, match="step 1: .* 1 skipped"):
        fit(tmp_path, module, accumulate_grad_batches=2)
    assert same(module.seen[1], module.seen[3])
    assert not same(module.seen[3], module.seen[5])


@pytest.mark.filterwarnings("ignore:step . loss or gradient")
def test_too_many_in_a_row_end_training_and_name_the_last_checkpoint(tmp_path: Path) -> None:
    module = Spoilt({1: "nan", 2: "nan", 4: "nan", 5: "nan"})
    assert fit(tmp_path / "two", module, limit=3).skipped == 4
    with pytest.raises(
        HuvrError, match=r"2 steps in a row, the last being step 2, .*the last good checkpoint is .*step=2\.ckpt$"
    ):
        fit(tmp_path / "stopped", Spoilt({1: "nan", 2: "nan"}), limit=2)
    with pytest.raises(HuvrError, match=r"1 steps in a row, .*training stopped; no checkpoint has been written"):
        fit(tmp_path / "none", Spoilt({0: "nan"}), limit=1)
    with pytest.raises(HuvrError, match="most_in_a_row 0: expected 1 or more"):
        SkipNonFinite(0)


@pytest.mark.filterwarnings("ignore:step . loss or gradient")
def test_the_count_goes_on_after_a_resume(tmp_path: Path) -> None:
    faults = {1: "nan", 2: "nan"}
    fit(tmp_path / "run", Spoilt(faults))
    guard = SkipNonFinite()
    guard.load_state_dict(torch.load(tmp_path / "run" / "step=2.ckpt", weights_only=True)["callbacks"]["SkipNonFinite"])
    assert (guard.skipped, guard.in_a_row) == (1, 1)


def test_the_norm_is_that_of_all_gradients() -> None:
    assert total_norm([torch.tensor([3.0]), torch.tensor([[4.0], [12.0]])]) == 13
    assert total_norm([]) == 0


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files end at 100 kB: a write of more fails in its midst, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path, writer = tmp_path / "last.ckpt", WholeCheckpoints()
    writer.save_checkpoint({"step": 1, "weights": torch.ones(1000)}, path)
    for size in (20_000, 10**6):  # found out when the file is closed, and while it is written
        with pytest.raises(HuvrError, match=r"cannot write .*last\.ckpt: File too large"):
            writer.save_checkpoint({"step": 2, "weights": torch.ones(size + 6000)}, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["step"] == 1


def test_a_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".step=3.ckpt.123.partial").write_bytes(b"half")
    WholeCheckpoints().save_checkpoint({"step": 4}, tmp_path / "step=4.ckpt")
    assert os.listdir(tmp_path) == ["step=4.ckpt"]


def written(path: Path, age: int, step: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"state_dict": {"x": torch.ones(1000)}, "optimizer_states": [], "global_step": step}
    torch.save({"pytorch-lightning_version": "2.6"} | state, path)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_auto_takes_the_most_steps_and_of_one_step_the_last(tmp_path: Path) -> None:
    """Others may be written every so many steps, but after an epoch that was broken off they count it as a whole one."""
    last = written(tmp_path / "checkpoints" / "last.ckpt", age=5, step=8)
    written(tmp_path / "checkpoints" / "epoch=0.ckpt", age=4, step=8)
    written(tmp_path / "checkpoints" / "step=6.ckpt", age=1, step=6)  # the order of a copy
    assert find_checkpoint("auto", tmp_path, training=True) == last
    later = written(tmp_path / "checkpoints" / "step=12.ckpt", age=3, step=12)
    assert find_checkpoint("auto", tmp_path, training=True) == later
    requeued = written(tmp_path / "hpc_ckpt_1.ckpt", age=4, step=12)
    assert find_checkpoint("auto", tmp_path, training=True) == requeued


def test_auto_falls_back_to_the_newest_intact_checkpoint(tmp_path: Path) -> None:
    older, newer = (written(tmp_path / "checkpoints" / f"step={step}.ckpt", age=10 - step, step=step) for step in (2, 4))
    last = written(tmp_path / "checkpoints" / "last.ckpt", age=5, step=5)
    assert find_checkpoint("auto", tmp_path, training=True) == last
    os.truncate(last, last.stat().st_size // 2)
    with pytest.warns(UserWarning, match=r"last\.ckpt: not a \.ckpt file of huvr fit; it is passed over"):
        assert find_checkpoint("auto", tmp_path, training=True) == newer
    newer.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step=4\.ckpt"):
        assert find_checkpoint("auto", tmp_path, training=True) == older
    older.unlink()
    with pytest.warns(match="passed over"), pytest.raises(HuvrError, match=r"no checkpoint in .* can be read; to start anew"):
        find_checkpoint("auto", tmp_path, training=True)


def test_training_does_not_go_on_from_weights_alone(tmp_path: Path) -> None:
    best = written(tmp_path / "checkpoints" / "best.ckpt", age=0)
    content = torch.load(best, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, best)
    assert find_checkpoint("auto", tmp_path, training=False) == best
    with pytest.warns(match=r"best\.ckpt: of weights alone .* passed over"):
        assert find_checkpoint("auto", tmp_path, training=True) is None
    with pytest.raises(HuvrError, match=r"best\.ckpt: of weights alone \(save_weights_only\), from which training cannot go on"):
        find_checkpoint(str(best), tmp_path, training=True)


def test_no_epoch_is_missed_after_a_checkpoint_of_the_last_batch_of_one(tmp_path: Path) -> None:
    resume = None
    for epochs in (1, 2, 3):
        last, steps = LastCheckpoint(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        trainer = Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_epochs=epochs, limit_train_batches=4, limit_val_batches=0,
            logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[steps, last],
        )  # fmt: skip
        trainer.fit(BoringModel(), ckpt_path=resume, weights_only=True)
        assert trainer.global_step == 4 * epochs
        resume = tmp_path / "step=4.ckpt" if epochs == 1 else Path(last.best_model_path)


class Stopping(BoringModel):
    """Asks for the end itself, which Lightning hears of after all callbacks."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trainer.should_stop |= self.trainer.global_step == 5


class Overstated(torch.utils.data.IterableDataset[Tensor]):
    """Says that it has more than it gives."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(8, 32))


@pytest.mark.parametrize(("module", "steps"), [(Stopping, 5), (BoringModel, 8)])
def test_the_last_checkpoint_is_written_however_an_epoch_ends(tmp_path: Path, module: type[BoringModel], steps: int) -> None:
    data = DataLoader(Overstated() if module is BoringModel else torch.ones(8, 32))  # type: ignore[arg-type]
    resume = None
    for epochs in (1, 2):
        last = LastCheckpoint()
        trainer = Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_epochs=epochs, limit_val_batches=0, logger=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[last],
        )  # fmt: skip
        trainer.fit(module(), data, ckpt_path=resume, weights_only=True)
        assert torch.load(last.best_model_path, weights_only=True)["global_step"] == (steps if epochs == 1 else 16)
        resume = Path(last.best_model_path)


class Dying(LightningDataModule):
    """The system kills the process that loads."""

    batch_size = 1

    def train_dataloader(self) -> DataLoader:
        return DataLoader([0], num_workers=1, worker_init_fn=lambda _: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[arg-type]


def test_a_worker_that_dies_ends_training_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_steps=1", "--run", str(tmp_path / "run")]
    assert main(["fit", "--data", f"{Path(__file__).stem}.Dying", *quiet]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a process that loads images died (DataLoader worker (pid" in line
    assert "--ckpt_path auto goes on" in line


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_shard_that_is_gone_or_cut_off_stops_the_stream_in_one_line(tmp_path: Path, workers: int, damage: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    for shard in range(3):
        table = pa.table({"image": [{"bytes": picture.getvalue(), "path": None}] * 4})
        pq.write_table(table, tmp_path / f"train-{shard}.parquet")
    data = Images(str(tmp_path), size=16, batch_size=2, epoch_size=12, streaming=True, held_out=0, workers=workers)
    data.setup()
    loader = data.train_dataloader()
    shard = tmp_path / "train-1.parquet"
    shard.unlink() if damage == "gone" else os.truncate(shard, 100)
    reason = "No such file.*train-1" if damage == "gone" else "Parquet"
    with pytest.raises(HuvrError, match=rf"^{tmp_path}: a shard of this stream cannot be read \(.*{reason}.*\)$"):
        list(loader)
