"""A Slurm cluster of one node, this machine, while a block runs. Both daemons run in their own folder, without accounting.

On Debian and Ubuntu, install it with `apt-get install slurmctld slurmd slurm-client`. The daemons run as root and authenticate
nobody. They listen on the loopback address alone. Do not use this on a machine with users whom you do not trust.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("setpriv", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")
START = 60.0  # seconds that the node gets to become idle
# `none` replaces the services of a cluster: nothing authenticates users, confines jobs or counts resources.
SETTINGS = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={daemon}
SlurmUser=root
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can start here. Empty if one can."""
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client brings Slurm"
    return "" if os.geteuid() == 0 else "Slurm's daemons run as root"


@contextmanager
def one_node() -> Iterator[dict[str, str]]:
    """Yield the environment in which Slurm's commands use a cluster of one node, which runs for the block.

    Raises:
        RuntimeError: the cluster did not start. The message has the ends of its logs.
    """
    control, daemon = _free_ports(2)
    cores, memory = os.cpu_count(), psutil.virtual_memory().total // 2**20
    host = socket.gethostname().split(".")[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))  # short: it holds sockets
        for name in ("state", "spool"):
            (folder / name).mkdir()
        filled = SETTINGS.format(host=host, folder=folder, control=control, daemon=daemon, cores=cores, memory=memory)
        settings = folder / "slurm.conf"
        settings.write_text(filled, encoding="utf-8")
        environment = {"SLURM_CONF": str(settings)}
        for program in ("slurmctld", "slurmd"):
            log = stack.enter_context((folder / f"{program}.log").open("w"))
            line = ["setpriv", "--pdeathsig", "KILL", program, "-D", "-f", settings]  # killed with this process, however it ends
            process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
            stack.callback(_end, process)
        _wait_until_idle(folder, os.environ | environment)
        yield environment


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_idle(folder: Path, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        said = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False)
        if said.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"the node was not idle after {START:g} s, but {said.stdout.strip() or said.stderr.strip()}\n{logs}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a daemon and the processes it started, because a job would outlive it."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in started:
        if child.is_running():
            child.kill()
