"""The commands `spikebit devices report MODEL` and `spikebit devices fit TRACES`.

A report is a page of pictures, or reads as JSON; a fit is a device file and a page that shows how
well it does. What is computed stands in `fit.py` and in the studies `device` and `device_fit`.
"""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATIENCE = 5.0  # seconds after which a fit tells of its steps
READ = ("target_uS", "time_s", "mean_uS", "std_uS", "n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("action", choices=("report", "fit"), help="show a device, or fit one")
    parser.add_argument(
        "model", help="report: a name such as pcm, or a device file; fit: traces, .csv or .h5"
    )
    parser.add_argument("--out", help="fit: the device file (the name of the traces, in .json)")
    parser.add_argument("--cells", type=int, default=100_000, help="for each target (100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the cells and their noise (0)")


def settings(args: argparse.Namespace) -> Any:
    """The study of the device.

    Raises:
        ValueError: an unknown device, no cells, or reads as JSON of one that is not programmed.
    """
    from .. import experiment_file
    from .presets import by_name

    if args.json and by_name(args.model).program is None:
        raise ValueError(
            f"devices report: {args.model} takes pulses only, so that there is no target to read; "
            "leave --json away for its pictures."
        )
    wanted = {
        "study.device": args.model,
        "study.cells": args.cells,
        "run.name": _run_name("device", args.model),
        "run.seed": args.seed,
    }
    return experiment_file.load("device", [f"{k}={v}" for k, v in wanted.items()])


def fit(args: argparse.Namespace, watcher: Any) -> dict[str, Any]:
    """Fits, writes the device file and the page.

    Returns:
        device (the file), run (the directory of the page), what the fit says of itself, summary of
        the page, and parameters, one a row.

    Raises:
        ValueError: traces that cannot be read or fitted, a device file that cannot be written.
        OSError: no such file.
    """
    from .. import experiment_file, launch
    from ..studies.device_fit import table
    from . import device_file, pulse_traces
    from .fit import fit as fit_traces

    traces = pulse_traces.read(args.model)
    out = args.out or f"{Path(args.model).stem}.json"
    device_file.check_free(out)
    begin = time.perf_counter()

    def say(text: str) -> None:
        if time.perf_counter() - begin > _PATIENCE:
            watcher.note(text)

    fitted = fit_traces(traces.over(traces.reference), say)
    reads = int((traces.g == traces.g).sum())
    source = device_file.Source(
        file=traces.name,
        cells=len(traces.cells),
        reads=reads,
        log_likelihood=fitted.log_likelihood,
    )
    content = device_file.of_fit(fitted, traces.unit, traces.reference, source)
    device_file.write(out, content)
    seconds = round(time.perf_counter() - begin, 2)
    wanted = {"name": "device_fit", "traces": str(args.model), "device": out}
    run = {"name": _run_name("fit", args.model), "seed": args.seed}
    page = launch.run(experiment_file.check({"study": wanted, "run": run}), watcher)
    symmetry = {
        "symmetry_point": fitted.symmetry + traces.reference,
        "symmetry_error": _finite(fitted.symmetry_error),
    }
    return {
        "device": out,
        "run": page["run"],
        "unit": traces.unit,
        "reference": traces.reference,
        "cells": len(traces.cells),
        "reads": reads,
        "repeated_reads": traces.repeated,
        "converged": fitted.converged,
        "log_likelihood": fitted.log_likelihood,
        "fit_seconds": seconds,
        **symmetry,
        "innovation_std": page["innovation_std"],
        "mean_in_band": page["mean_in_band"],
        "parameters": table(content),
    }


def _finite(value: float) -> float | None:
    """None for what is no number."""
    return value if value == value else None


def _run_name(kind: str, model: str) -> str:
    """A name of a run for a device or a file."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{kind}_{Path(model).stem}")


def print_reads(run: str, print_json: Callable[[dict[str, Any]], None]) -> None:
    """A line for each target and time; 0 is right after programming, without the noise of a read.

    Args:
        run: the directory of the study.
        print_json: prints one.
    """
    from ..run_directory import open_run

    for row in open_run(run).metrics():
        if row["shows"] == "reads":
            print_json({name: row[name] for name in READ})
