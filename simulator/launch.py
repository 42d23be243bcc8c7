"""A run from its settings to its report: job, run directory, checkpoints, report, in this order.

Each part stands in a file of its own; here is only what happens when. A study has cases instead of
a job (`study.py`).
"""

from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from ..learning_rules import parameters
from . import checkpoint, study
from .build import build
from .evaluate import Evaluation, make_evaluation
from .experiment import Experiment, resolve
from .job import Job
from .run_directory import RunDirectory, check_free, create, open_run, versions, write_json
from .state_losses import lost_in_formats
from .studies import Study
from .train import TrainState, check, initial_state, read_parameters, train
from .watcher import NOBODY, Watcher


def run(experiment: Experiment | Study, watcher: Watcher = NOBODY) -> dict[str, Any]:
    """Trains an experiment, or carries out a study, in a new run directory and writes its report.

    Returns:
        The result: run (the folder), test_accuracy, test_loss, seconds and more; of a study run,
        study, seconds and its summary. As in result.json.

    Raises:
        ValueError: settings or data that are wrong, a run directory that is taken (nothing has been
            written then), or a loss that is not a number any more.
        OSError: the run directory cannot be written.
    """
    check_free(experiment)
    if isinstance(experiment, Study):
        study.cases_of(experiment)  # says what is wrong before there is a run directory
        directory = create(experiment)
        with directory.locked(), directory.judged():
            return study.carry_out(directory, experiment, watcher)
    experiment = resolve(experiment)
    job = build(experiment)
    check(job)
    directory = create(experiment)
    with directory.locked(), directory.judged():
        return _continue(directory, job, None, watcher)


def resume(path: str | Path, watcher: Watcher = NOBODY) -> dict[str, Any]:
    """Goes on with a run that stopped, to the same bits as if it had not; as `run` otherwise.

    A complete run is left as it is. A run without a checkpoint starts again. A study goes on with
    the first case that has no row.

    Raises:
        ValueError: the folder is not a run, another process works on it, or its files are damaged.
    """
    directory = open_run(path)
    result = directory.result()
    if result is not None:
        watcher.note(f"{directory.path} is complete already")
        return result | {"run": str(directory.path)}  # it may have been moved
    with directory.locked():
        experiment = directory.experiment()
        _warn_of_versions(directory, watcher)
        if isinstance(experiment, Study):
            directory.set_state("running")
            with directory.judged():
                return study.carry_out(directory, experiment, watcher)
        job = build(experiment)
        like = jax.eval_shape(lambda: initial_state(job))
        restored = checkpoint.restore(directory.path / "checkpoints", like)
        if restored is not None:
            for text in restored.damaged:
                watcher.note(f"going on from the checkpoint before: {text}")
        directory.set_state("running")
        with directory.judged():
            return _continue(directory, job, restored, watcher)


def _continue(
    directory: RunDirectory, job: Job, restored: checkpoint.Restored | None, watcher: Watcher
) -> dict[str, Any]:
    lines = 0 if restored is None else restored.notes["lines"]
    directory.cut_metrics(lines)

    def on_metrics(line: dict[str, Any]) -> None:
        nonlocal lines
        directory.append_metrics(line)
        lines += 1
        watcher.metrics(line)

    def on_checkpoint(step: int, state: TrainState, seconds: float) -> None:
        notes = {"lines": lines, "seconds": seconds}
        checkpoint.save(directory.path / "checkpoints", step, state, notes)

    done = 0 if restored is None else restored.step
    watcher.started(directory, job.dataset.describe(), job.steps, done)
    test = make_evaluation(job, job.dataset.test)
    state = train(
        job,
        test=test,
        start=None if restored is None else (restored.step, restored.tree),
        seconds=0.0 if restored is None else restored.notes["seconds"],
        on_metrics=on_metrics,
        on_checkpoint=on_checkpoint,
    )
    params = read_parameters(job, state.memory)
    return _finish(directory, job, params, test(params))


def _finish(
    directory: RunDirectory, job: Job, params: PyTree, evaluation: Evaluation
) -> dict[str, Any]:
    last = directory.metrics()[-1]
    result = {
        "run": str(directory.path),
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "train_accuracy": last["train_accuracy"],
        "train_loss": last["train_loss"],
        "seconds": last["seconds"],
        "epochs": job.epochs,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters(job.network))),
        "activity": evaluation.activity,
        "lost": last["lost"],
        "lost_in_states": lost_in_formats(job, params, job.dataset.test),
    }
    if "diagnostics" in last:
        result["diagnostics"] = last["diagnostics"]
    from . import report  # here, since it brings matplotlib, which takes long to import

    write_json(directory.path / "result.json", result)
    report.write(directory, job, params, evaluation, result)
    directory.set_state("complete")
    return result


def _warn_of_versions(directory: RunDirectory, watcher: Watcher) -> None:
    now, then = versions(), directory.versions()
    changed = [f"{k} {then.get(k)} -> {v}" for k, v in now.items() if then.get(k) != v]
    if changed:
        watcher.note(f"the last bits may differ, since versions changed: {', '.join(changed)}")
