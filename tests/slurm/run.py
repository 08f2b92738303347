"""SLURM on one machine: the shipped sbatch files, as they are, through a requeue. ``make test-slurm``; as root, on Debian 12.

Installs slurm-wlm and munge where they are missing, starts them with a configuration of its own in a folder under /tmp, and
stops what it started. A pretraining on two CPU tasks gets the signal of the time limit in the middle of an epoch; it must be
requeued, go on from the step it had come to, and train on every step exactly once. Then two probes run as an array.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

T = TypeVar("T")

SHIPPED = Path(__file__).parents[2] / "configs" / "slurm"
STEPS, EPOCH = 120, 16  # the signal comes a second or two after the first epoch
SMALL = ["--nodes=1", "--cpus-per-task=1", "--gpus-per-node=0", "--mem=0", "--oversubscribe"]
CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    install()
    folder = Path(tempfile.mkdtemp(prefix="huvr-slurm-", dir="/tmp"))
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.chdir(folder)
    with ExitStack() as daemons:
        start(folder, daemons)
        pretraining()
        probes()
    shutil.rmtree(folder)


def install() -> None:
    if os.geteuid() != 0:
        raise SystemExit("the daemons of SLURM change users: run this as root")
    if all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ("update", "install --yes --no-install-recommends slurm-wlm munge"):
        subprocess.run(["apt-get", "--quiet", "--quiet", *command.split()], check=True, env=environment)


def start(folder: Path, daemons: ExitStack) -> None:
    """munge, the controller and the only node."""
    (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname(), folder=folder))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    if not works("munge", "--no-input"):
        subprocess.run(["install", "--directory", "--owner=munge", "--mode=0755", "/run/munge"], check=True)
        daemons.enter_context(daemon("runuser", "--user=munge", "--", "munged", "--foreground", "--force"))
        until(lambda: works("munge", "--no-input"), "munge", 20)
    daemons.enter_context(daemon("slurmctld", "-D"))
    daemons.enter_context(daemon("slurmd", "-D"))
    until(lambda: "idle" in told("sinfo", "--noheader", "--format=%T"), "a node that is idle", 60)


@contextmanager
def daemon(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def pretraining() -> None:
    """One signal, one requeue, every step once."""
    options = ["--config=demo.yaml", "--model.teachers=[]", "--model.pictures_every=0", f"--data.epoch_size={EPOCH * 4}"]
    options += ["--data.batch_size=2", "--data.sizes=[[32,32],[32,48]]", "--data.size=64", "--run=runs/requeued"]
    options += ["--trainer.precision=32-true", f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1"]
    options += ["--trainer.max_epochs=-1", "--trainer.accelerator=cpu"]
    job = submit("--ntasks-per-node=2", "--time=20", SHIPPED / "pretrain.sbatch", *options)
    log, last = Path(f"huvr-pretrain-{job}.log"), Path("runs/requeued/checkpoints/last.ckpt")
    requeued = Path("runs/requeued/hpc_ckpt_1.ckpt")
    until(last.exists, f"{last} after the first epoch", 240, log)
    told("scancel", "--signal=USR1", job)
    found = until(
        lambda: re.search(r"step (\d+): .*hpc_ckpt_1\.ckpt is written, and the job requeued", log.read_text()), "requeue", 60, log
    )
    step = int(found[1])
    assert EPOCH < step < STEPS, f"requeued at step {step}: too late to see it resume"
    assert global_step(requeued) == step
    until(lambda: state(job, "JobState") == "COMPLETED", "the end of the requeued job", 300, log)
    assert state(job, "Restarts") == "1"
    assert re.search(r"Restored all states from the checkpoint at \S*hpc_ckpt_1\.ckpt", log.read_text()), log.read_text()
    assert log.read_text().count("huvr: error") == 0
    assert global_step(last) == STEPS
    assert not requeued.exists()
    trained = sorted(event.step for file in Path("runs/requeued").glob("events.*") for event in events(file))
    assert trained == list(range(STEPS)), f"steps trained on: {trained}"
    print(f"pretrain.sbatch: requeued at step {step}, resumed there, {STEPS} steps once each")


def probes() -> None:
    """An array of two."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, value in (("dark", 40), ("light", 200)):
            Path("images", split, label).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(value - 30, value + 30, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path("images", split, label, f"{number}.png"))
    common = (
        "--encoder runs/requeued --data.root images --data.resize 32 --data.crop 32 --data.workers 0 --trainer.accelerator cpu"
    )
    Path("probes.txt").write_text(
        f"--task knn --model.k '[1]' --run a {common}\n--task retrieval --model.k '[1, 2]' --run b {common}\n"
    )
    job = submit("--array=1-2", "--time=10", SHIPPED / "probes.sbatch", "probes.txt")
    logs = [Path(f"huvr-probe-{job}_{number}.log") for number in (1, 2)]
    until(lambda: all(state(f"{job}_{n}", "JobState") == "COMPLETED" for n in (1, 2)), "the probes", 240, *logs)
    assert Path("a/record.json").exists()
    assert Path("b/record.json").exists()
    print("probes.sbatch: two probes, two records")


def submit(*command: str | Path) -> str:
    """The number of the job."""
    return told("sbatch", "--parsable", *SMALL, *map(str, command)).strip()


def told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def state(job: str, key: str) -> str:
    found = re.search(rf"\b{key}=(\S+)", told("scontrol", "show", "job", job))
    return found[1] if found else ""


def until(condition: Callable[[], T], what: str, seconds: float, *logs: Path) -> T:
    """What ``condition`` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            texts = [f"--- {log}\n{log.read_text()}" for log in logs if log.exists()]
            raise SystemExit("\n".join([f"waited {seconds} s in vain for {what}", told("scontrol", "show", "job"), *texts]))
        time.sleep(1)
    return found


def global_step(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def events(file: Path) -> Iterator:
    """Those of the loss."""
    for event in EventFileLoader(str(file)).Load():
        if any(value.tag == "train/loss" for value in event.summary.value):
            yield event


if __name__ == "__main__":
    main()
