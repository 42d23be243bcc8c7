"""Fatiguing STDP in Brian2, in a process of its own, as `kernels.stdp_events` computes it.

What belongs here: Brian2 and its model. `plastic_brian2.py FILE TARGET FOLDER` reads a problem from
FILE, sets it up for "numpy" or compiles it as "cpp" in FOLDER, and answers one JSON line, and one
more for each line that it reads: a run from the start, its weights in FOLDER/TARGET.npy. The order
within a step is spikebit's: an input acts before the neuron.
"""

import contextlib
import json
import resource
import sys
import time

import brian2 as b2
import numpy as np

SYNAPSE = """
w : 1
dF/dt = -F / tau_f : 1 (event-driven)
dx/dt = -x / tau_x : 1 (event-driven)
dy/dt = -y / tau_y : 1 (event-driven)
"""
# a spike meets the fatigue that earlier ones left
ON_PRE = """
v_post += w * (1 - F)
F += use * (1 - F)
x += 1
w = clip(w - a_minus * y, 0, w_max)
"""
ON_POST = """
w = clip(w + a_plus * x, 0, w_max)
y += 1
"""


def main(file: str, target: str, folder: str) -> None:
    problem = np.load(file)
    number = {k: float(problem[k]) for k in problem.files if problem[k].ndim == 0}
    dt, seconds = number["dt"], number["seconds"]
    if target == "cpp":
        b2.set_device("cpp_standalone", build_on_run=False, directory=f"{folder}/cpp")
    else:
        b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = dt * b2.second
    names = {
        "theta": number["threshold"],
        "tau_m": number["tau_membrane"] * b2.second,
        "tau_x": number["tau_stdp"] * b2.second,
        "tau_y": number["tau_stdp"] * b2.second,
        "tau_f": number["tau_fatigue"] * b2.second,
        **{k: number[k] for k in ("use", "a_plus", "a_minus", "w_max")},
    }
    inputs = b2.SpikeGeneratorGroup(
        int(number["inputs"]), problem["source"], problem["step"] * dt * b2.second, sorted=True
    )
    neurons = b2.NeuronGroup(
        int(number["neurons"]),
        "dv/dt = -v / tau_m : 1",
        threshold="v > theta",
        reset="v = 0",
        method="exact",
        namespace=names,
    )
    synapses = b2.Synapses(
        inputs, neurons, SYNAPSE, on_pre=ON_PRE, on_post=ON_POST, method="exact", namespace=names
    )
    synapses.connect()
    synapses.w = number["weight"]
    inputs.when = "start"
    synapses.pre.when = "before_thresholds"
    spikes = b2.SpikeMonitor(neurons)
    network = b2.Network(inputs, neurons, synapses, spikes)
    start = time.perf_counter()
    if target == "cpp":
        network.run(seconds * b2.second)
        with contextlib.redirect_stdout(sys.stderr):
            b2.device.build(directory=f"{folder}/cpp", run=False, compile=True, with_output=False)
    else:
        network.run(0 * b2.second)  # makes the code
        network.store()
    answer({"set_up": time.perf_counter() - start, "version": b2.__version__})
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        if target == "cpp":
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            b2.device.run(directory=f"{folder}/cpp", with_output=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall = b2.device._last_run_time  # without the start of the program
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        else:
            network.restore()
            network.run(seconds * b2.second)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        np.save(f"{folder}/{target}.npy", np.asarray(synapses.w[:]))
        answer({"wall": wall, "cpu": cpu, "spikes": int(spikes.num_spikes)})


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
