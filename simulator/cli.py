"""The command line: arguments in, calls of the library, lines and exit codes out.

    0  done    2  bad input, in one line    130  stopped with Ctrl-C; `spikebit resume` goes on

With --json standard output has one JSON object a line and nothing else; prose and progress go to
standard error. Nothing is computed here, and heavy imports wait until a command needs them.
"""

import argparse
import json
import sys
from typing import Any, NoReturn

from .. import __version__
from ..quant.models import command as language
from .devices import command as models
from .instruments import command as bench

CELLS = ("snu", "soft_snu", "lif", "synaptic_lif", "alif", "lstm", "gru", "simple")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv: the arguments after the program's name; None takes those of the process.
    """
    try:
        args = _parser().parse_args(argv)
    except _UsageError as error:
        print(f"spikebit: {error}", file=sys.stderr)
        if "--json" in (sys.argv[1:] if argv is None else argv):
            _print_json({"error": str(error)})
        return 2
    try:
        args.command(args)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        text = " ".join(_message(error).split())
        print(f"spikebit: {text}", file=sys.stderr)
        if args.json:
            _print_json({"error": text})
        return 2
    except KeyboardInterrupt:
        print("spikebit: stopped", file=sys.stderr)
        return 130
    return 0


class _UsageError(ValueError):
    """Arguments that make no command."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="spikebit",
        description="Spiking and recurrent networks that learn online, on weights of few bits.",
    )
    parser.add_argument("--version", action="version", version=f"spikebit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
        sub.set_defaults(command=function)
        return sub

    run = command("run", _run, "Run an experiment or a study in a new run directory.")
    run.add_argument("experiment", help="TOML file, or the name of an experiment of the package")
    run.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="override a setting, such as rule.name=bptt; may be repeated",
    )  # fmt: skip
    resume = command("resume", _resume, "Go on with a run that stopped, to the same bits.")
    resume.add_argument("run", help="run directory")
    compare = command("compare", _compare, "Compare runs: one table, one plot.")
    compare.add_argument("runs", nargs="+", metavar="run", help="run directory")
    compare.add_argument("--out", default="compare.png", help="file of the plot (compare.png)")
    rules = command("rules", _rules, "Compare learning rules with BPTT on a random sequence.")
    rules.add_argument("--cell", choices=CELLS, default="snu")
    for name, value, text in (
        ("inputs", 11, "features of the input"),
        ("hidden", 17, "units of each recurrent layer"),
        ("layers", 1, "recurrent layers"),
        ("outputs", 5, "classes"),
        ("steps", 50, "time steps"),
        ("batch", 3, "samples"),
        ("chunk", 1, "steps given to a rule at a time"),
        ("seed", 1, "of weights, inputs and classes"),
    ):
        rules.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    rules.add_argument("--rules", default="bptt,ostl", help="names with commas (bptt,ostl)")
    models.add_arguments(
        command("devices", _devices, "Show what a device does, or fit one to traces.")
    )
    bench.add_arguments(
        command("instrument", _instrument, "Serve simulated cells as a SCPI bench.")
    )
    language.add_arguments(
        command("evaluate", _evaluate, "Say what a text is worth to a language model.")
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    from . import experiment_file, launch

    settings = experiment_file.load(args.experiment, args.overrides)
    _watched(args, lambda watcher: launch.run(settings, watcher))


def _resume(args: argparse.Namespace) -> None:
    from . import launch

    _watched(args, lambda watcher: launch.resume(args.run, watcher))


def _watched(args: argparse.Namespace, work: Any) -> None:
    """Does the work under the eyes of a progress display and tells its result."""
    from ..kernels import keep_memory
    from .progress import Display

    keep_memory()
    with Display(sys.stderr) as display:
        watcher = display.watcher(_print_json if args.json else None)
        try:
            result = work(watcher)
        except KeyboardInterrupt:
            if display.run is not None:
                display.note(f"go on with: spikebit resume {display.run}")
            raise
    if args.json:
        _print_json(result)
        return
    if "study" in result:
        for key, value in result.items():
            print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
        print(f"report: {result['run']}/report.html")
        return
    accuracy = result["test_accuracy"]
    quality = f"loss {result['test_loss']:.4f}" if accuracy is None else f"accuracy {accuracy:.2%}"
    print(f"test {quality} after {result['seconds']:.0f} s")
    print(f"report: {result['run']}/report.html")


def _compare(args: argparse.Namespace) -> None:
    from pathlib import Path

    from . import compare_runs, report
    from .run_directory import open_run

    runs = [open_run(path) for path in args.runs]
    table = compare_runs.rows(runs)
    Path(args.out).write_bytes(report.png(compare_runs.plot(runs)))
    _print_table(args, table, upright=True)
    print(f"learning curves: {args.out}", file=sys.stderr)


def _rules(args: argparse.Namespace) -> None:
    from .rules_table import rules_table

    names = [name.strip() for name in args.rules.split(",") if name.strip()]
    sizes = {k: getattr(args, k) for k in ("inputs", "hidden", "layers", "outputs")}
    sizes |= {k: getattr(args, k) for k in ("steps", "batch", "chunk", "seed")}
    rows = rules_table(names, cell=args.cell, **sizes)
    if args.json:
        _print_table(args, rows)
        return
    _print_table(args, [{k: v for k, v in r.items() if k not in ("exact", "leaves")} for r in rows])
    for row in rows:
        print(f"{row['rule']}: {row['exact']}")


def _devices(args: argparse.Namespace) -> None:
    from . import launch
    from .progress import Display

    if args.action == "fit":
        _fit(args)
        return
    settings = models.settings(args)
    if not args.json:
        _watched(args, lambda watcher: launch.run(settings, watcher))
        return
    with Display(sys.stderr) as display:
        result = launch.run(settings, display.watcher(None))
    models.print_reads(result["run"], _print_json)


def _fit(args: argparse.Namespace) -> None:
    from .progress import Display

    with Display(sys.stderr) as display:
        result = models.fit(args, display.watcher(None))
    if args.json:
        _print_json(result)
        return
    _print_table(args, [{k: _short(v) for k, v in row.items()} for row in result["parameters"]])
    for name in ("symmetry_point", "reference", "innovation_std", "repeated_reads", "converged"):
        print(f"{name}: {_short(result[name])}")
    print(f"device: {result['device']}")
    print(f"report: {result['run']}/report.html")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _instrument(args: argparse.Namespace) -> None:
    bench.run(args, _print_json)


def _evaluate(args: argparse.Namespace) -> None:
    found = language.evaluate(args)
    if args.json:
        _print_json(found)
        return
    for name, value in found.items():
        print(f"{name}: {_short(value)}")


def _print_table(
    args: argparse.Namespace, table: list[dict[str, Any]], *, upright: bool = False
) -> None:
    from .compare_runs import as_text

    if args.json:
        for row in table:
            _print_json(row)
    else:
        print(as_text(table, upright=upright))


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, allow_nan=False), flush=True)


def _out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _message(error: Exception) -> str:
    if _out_of_memory(error):
        return (
            f"{str(error).splitlines()[0]} Not enough memory: take fewer units, a smaller batch, "
            'or a rule or scope with smaller traces, such as rule.scope = "no_h".'
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
