"""The command `spikebit devices report MODEL`: its pictures, or its reads as JSON."""

import argparse
from collections.abc import Callable
from typing import Any

READ = ("target_uS", "time_s", "mean_uS", "std_uS", "n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("action", choices=("report",), help="a page of pictures; reads as JSON")
    parser.add_argument("model", help="name of a device, such as pcm or ecram")
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
        "run.name": f"device_{args.model}",
        "run.seed": args.seed,
    }
    return experiment_file.load("device", [f"{k}={v}" for k, v in wanted.items()])


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
