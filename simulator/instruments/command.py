"""The command `spikebit instrument serve`: a simulated array as a bench on a socket."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..devices import DEVICES, by_name
from .server import LOOPBACK, resource, serve
from .simulated import SimulatedArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("action", choices=("serve",), help="until Ctrl-C")
    parser.add_argument("--device", default="pcm", help=f"one of {', '.join(DEVICES)} (pcm)")
    parser.add_argument(
        "--shape", type=int, nargs="+", default=[8, 8], metavar="N", help="of the array (8 8)"
    )
    parser.add_argument("--port", type=int, default=0, help="to listen on (0: any that is free)")
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on ({LOOPBACK})")
    parser.add_argument("--seed", type=int, default=0, help="of the cells and their noise (0)")


def run(args: argparse.Namespace, print_json: Callable[[dict[str, Any]], None]) -> None:
    """Serves until Ctrl-C.

    Raises:
        ValueError: an unknown device, a shape without cells, a port that is none.
        OSError: an address that is taken or not of this machine.
    """
    import jax

    if not 0 <= args.port < 2**16:
        raise ValueError(f"instrument serve: port is {args.port}; give 0 to 65535.")
    array = SimulatedArray(by_name(args.device), tuple(args.shape), jax.random.key(args.seed))

    def ready(host: str, port: int) -> None:
        if args.json:
            print_json({"resource": resource(host, port), "host": host, "port": port})
        else:
            print(f"{array.identify()} listens on {resource(host, port)}", flush=True)
            print("stop it with Ctrl-C", file=sys.stderr)

    serve(array, args.host, args.port, ready)
