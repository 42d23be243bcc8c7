"""`spikebit instrument serve`, as a lab would use it: another process, a client, Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from spikebit.simulator.cli import main
from spikebit.simulator.devices import set_pcm
from spikebit.simulator.instruments import SimulatedArray, visa

# a shell that starts things in the background has them ignore Ctrl-C, and tests may run there
SERVE = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from spikebit.simulator.cli import main; sys.exit(main())",
]
ALL = np.ones((2, 3), bool)


def test_a_served_array_is_the_simulated_one_and_ends_with_ctrl_c():
    words = ["instrument", "serve", "--device", "set_pcm", "--shape", "2", "3", "--seed", "5"]
    with subprocess.Popen(
        [*SERVE, *words, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        try:
            told = json.loads(process.stdout.readline())
            assert told["host"] == "127.0.0.1"
            bench = visa(told["resource"], timeout=30)
            bench.apply_pulses(ALL, 1, 3, 1.0)
            reading = bench.read(2.0)
            bench.close()
            with socket.create_connection(("127.0.0.1", told["port"])) as by_hand:
                by_hand.sendall(b"array:state?\n")
                assert by_hand.makefile().readline().split(",")[1:] == ["2", "1.0\n"]
                process.send_signal(signal.SIGINT)  # with a connection open
                out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert (out, err) == ("", "spikebit: stopped\n")
    near = SimulatedArray(set_pcm(), (2, 3), jax.random.key(5))
    near.apply_pulses(ALL, 1, 3, 1.0)
    np.testing.assert_array_equal(reading, near.read(2.0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--device", "tube"], "'tube' is no device; known are pcm"),
        (["serve", "--shape", "0", "8"], "shape is (0, 8)"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["serve", "--host", "192.0.2.1"], "192.0.2.1"),
        (["start"], "invalid choice: 'start'"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, said, capsys):
    assert main(["instrument", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
