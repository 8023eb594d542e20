"""`distill`: train a student from a sealed store. The teacher is neither imported nor loaded."""

from __future__ import annotations

import math

from kdcache.distill.config import DistillConfig, RunResult
from kdcache.distill.follow import settle_earlier
from kdcache.distill.plan import DistillPlan
from kdcache.progress import note
from kdcache.training.loop import train
from kdcache.training.processes import joined_processes
from kdcache.training.runs import RunFolder
from kdcache.version import __version__


def distill(config: DistillConfig) -> RunResult:
    """Train a student from a store.

    Raises:
        ConfigError, NotFoundError, IncompatibleError: the request cannot be met; found before the first step.
        UnfinishedStoreError, CorruptStoreError: the store is not sealed (with `follow`: and nobody writes it), or its
            bytes are damaged.
        NumericError: the loss became NaN or infinite; names the rows, and the last good checkpoint is kept.
    """
    with joined_processes(config.device) as processes:
        plan = DistillPlan(config, processes)
        processes.wait()  # all have named the run folder, before the first one makes it and changes the next free name
        folder = RunFolder(plan.folder, writes=processes.is_first, keep_every=config.keep_every)
        if config.resume and plan.follower is None:
            settle_earlier(folder, plan.decides(), plan.store)
            processes.wait()
        if config.resume and (finished := folder.result()) is not None:
            folder.start(plan.decides(), resume=True)
            note(f"{folder.path}: this run is finished; nothing was trained")
            return RunResult(folder=folder.path, figures=finished, reused=True)
        plan.prepare()
        folder.start(plan.decides(), resume=config.resume)
        processes.wait()
        if plan.follower is not None:
            plan.follower.attach(folder)
        trained = train(
            plan.student.module,
            plan.feed(),
            plan.objective,
            plan.evaluate(),
            plan.training,
            folder,
            processes,
            evaluated_on=plan.eval_split,
            resume=config.resume,
            before_epoch=plan.before_epoch,
            provenance={"recipe": "distill", "kdcache": __version__, **plan.decides(), "lineage": plan.lineage},
        )
        if plan.follower is not None:
            plan.follower.settle(folder, plan.decides())
            processes.wait()
        figures = plan.figures(trained)
        folder.finish(figures)
        guessing = math.log(plan.store.num_classes)
        if figures["nll"] > guessing:
            note(
                f"{folder.path}: NLL on {plan.eval_split} {figures['nll']:.4g} is above log K = {guessing:.4g}: worse "
                "than guessing, as when training diverged; a lower --lr or --clip-grad 1 may help"
            )
        processes.wait()
    return RunResult(folder=folder.path, figures=figures)
