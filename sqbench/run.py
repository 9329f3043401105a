"""python -m sqbench.run [-m] [overrides]: one sweep point, or with -m all combinations of comma-separated values."""

import logging
import os
import signal
import sys
from functools import partial
from types import FrameType

import psutil
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench import config
from sqbench.console.answer import application, refuse
from sqbench.console.progress import place_in_sweep
from sqbench.console.quiet import begin, quiet
from sqbench.errors import UserError
from sqbench.records.outcome import Outcome
from sqbench.records.store import Store
from sqbench.running.isolation import Share, end_child, run_isolated
from sqbench.sweeps import sweep

log = logging.getLogger("sqbench.run")  # the module itself is __main__

SCHEDULERS = ("SlurmLauncher", "RayLauncher")  # launchers that assign GPUs to jobs themselves

_asked_to_stop = False


def task(cfg: DictConfig) -> Outcome:
    """Run one point, in the process that the launcher chose. A single point also reports and exits here."""
    setting = HydraConfig.get()
    quiet(verbose=bool(setting.verbose))
    alone = setting.mode == RunMode.RUN
    sweep.announce(cfg)
    import torch

    from sqbench.running.checks import check
    from sqbench.running.point import identify
    from sqbench.running.resolved import resolve
    from sqbench.running.runner import run_point
    from sqbench.sweeps.plan import show_plan

    number, total = 0 if alone else int(setting.job.num), int(os.environ.get(sweep.TOTAL, "1"))
    if not alone:
        place_in_sweep(number, total)
    try:
        resolved = resolve(cfg)
        check(resolved)
        if alone:
            Store(cfg.results_dir).prepare()
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        if alone and cfg.plan:
            show_plan([identify(resolved)], cfg.results_dir)
            sys.exit(0)
        name = None if alone else os.path.basename(setting.sweep.dir)  # noqa: PTH119 (a name, not a file)
        share = _share(cfg, setting, total)
        for attempt in range(cfg.retry + 1):
            _stop_if_asked()
            own = sweep.own_overrides(setting.overrides.task)
            outcome = run_point(resolved, own, name) if share is None else run_isolated(resolved, own, name, share)
            if outcome.state != "failed" or attempt == cfg.retry:
                break
            log.info("failed %s  %s: trying again, %d of %d", outcome.point_id, outcome.error, attempt + 1, cfg.retry)
    except (UserError, OmegaConfBaseException) as error:
        if not alone:  # it was valid when the sweep began: it becomes a failed point, and the others go on
            raise
        sys.exit(refuse(error))
    place = "" if alone else f"[{number + 1}/{total}] "
    varied = sweep.told(setting.overrides.task, os.environ.get(sweep.KEYS, "").split(","))
    log.info("%s%s %s  %s%s  (%.1f s)", place, outcome.state, outcome.point_id, varied, outcome.summary, outcome.seconds)
    _stop_if_asked()
    if alone:
        sys.exit(sweep.report([outcome], cfg.results_dir))
    return outcome


def _share(cfg: DictConfig, setting: HydraConf, total: int) -> Share | None:
    """The share of the machine for a point in its own process. None if the point runs in this process."""
    parallel = setting.mode == RunMode.MULTIRUN and "BasicLauncher" not in setting.launcher._target_
    limited = any(limit is not None for limit in cfg.limits.values())
    if not ((parallel or limited) if cfg.isolate is None else cfg.isolate):
        return None
    if not parallel:
        return Share(cfg.threads)
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    workers = setting.launcher.get("n_jobs") or 1  # joblib's -1 is one worker per core
    total = min(total, setting.sweeper.get("jobs") or total)  # a search launches only so many at once
    told = setting.launcher.get("cpus_per_task") or OmegaConf.select(setting.launcher, "ray.remote.num_cpus")  # submitit's, Ray's
    share = told or cores // max(1, min(total, cores if workers < 0 else workers))
    given = setting.launcher._target_.endswith(SCHEDULERS) or cfg.device not in ("auto", "cuda")  # somebody else assigns the GPUs
    return Share(cfg.threads or max(1, int(share)), None if given else int(setting.job.num))


def _refuse_pictures(words: list[str]) -> None:
    """Raise UserError for an experiment that is a picture. The message has the right command, from the experiment's file."""
    for word in words:
        key, _, name = word.lstrip("+").partition("=")
        path = config.CONF_DIR / "experiment" / f"{name}.yaml"
        if key == "experiment" and path.is_file():
            line = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Run:")), "")
            if "sqbench.plot" in line:
                raise UserError(f"{word}: is a picture and no sweep; `{line.removeprefix('# Run:').strip()}` makes it")


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop as on Ctrl-C, so that the sweep can be resumed. The flag is for an exception that a destructor swallows."""
    global _asked_to_stop
    _asked_to_stop = True
    raise KeyboardInterrupt


def _stop_if_asked() -> None:
    if _asked_to_stop:
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line. It always ends with the exit status of its outcome."""
    global _asked_to_stop
    _asked_to_stop = False
    begin()
    quiet()
    config.register()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        status = application("config", task, first=partial(_refuse_pictures, sys.argv[1:]))
        sys.exit(sweep.interrupted() if status == sweep.INTERRUPTED else status)
    finally:
        end_child()
        _end_workers()


def _end_workers() -> None:
    """End the workers that joblib keeps. The next sweep of this process would find them with the environment of this one."""
    loky = sys.modules.get("joblib.externals.loky")  # the launcher has imported it, or there are none
    if loky is not None:
        loky.get_reusable_executor(reuse=True).shutdown(wait=True)


if __name__ == "__main__":
    main()
