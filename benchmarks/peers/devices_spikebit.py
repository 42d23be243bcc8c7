"""spikebit's side of `../devices.py`.

What belongs here: how spikebit does the cases of `devices_workload.py`, and nothing else.
"""

import jax
import jax.numpy as jnp
import numpy as np
from devices_workload import (
    ADC_BOUND,
    ADC_LEVELS,
    BOUND,
    DAC_LEVELS,
    DAY,
    LENGTH,
    OUTPUT_NOISE,
    PULSE,
    RATE,
    SPREAD,
    Run,
    Sizes,
    error,
    slope,
    tile_numbers,
    train_numbers,
)

from spikebit.kernels import keep_memory
from spikebit.kernels.normals import random_normals
from spikebit.simulator.devices import Variation, pcm, pulsed, tile, update_by_trains
from spikebit.simulator.devices.pulsed import constant, soft_bounds

PACKAGES = ("spikebit", "jax", "jaxlib", "numpy", "numba")
VARIANTS = ("jit",)
SHAPES = {"constant": constant, "soft": soft_bounds}


class _Keys:
    """A fresh key for each call."""

    def __init__(self):
        self.key = jax.random.key(0)

    def __call__(self):
        self.key, now = jax.random.split(self.key)
        return now


def build(case: str, variant: str, sizes: Sizes) -> Run:
    """The case, compiled."""
    del variant
    keep_memory()  # as `spikebit run` does
    length, _, kind = case.partition("_")
    if kind in SHAPES:
        return _trains(length, kind, sizes)
    if case == "normals":
        return _normals(2 * sizes.tile**2)
    return _tile(case, sizes)


def _timed(function, *rest):
    """A call with a key of its own, its keys made before the clock starts."""
    compiled, keys = jax.jit(function), iter(jax.random.split(jax.random.key(7), 100_000))
    return lambda: jax.block_until_ready(compiled(next(keys), *rest))


def _tile(case, sizes):
    w, x = map(jnp.asarray, tile_numbers(sizes))
    built = tile.Tile(
        pcm(),
        dac=tile.Converter(1.0, DAC_LEVELS),
        adc=tile.Converter(ADC_BOUND, ADC_LEVELS),
        output_noise=OUTPUT_NOISE,
    )
    exact_w, exact_y = np.asarray(w), np.asarray(x @ w)
    held = tile.program(built, w, jax.random.key(0))
    old = jax.jit(lambda held: tile.aged(built, held, DAY, compensate=True))(held)

    def product(key, old, x):
        return tile.matmul(built, old, x, key)

    def product_new(key, held, x):
        return tile.matmul(built, held, x, key, DAY, compensate=True)

    def program(key, w):
        return tile.program(built, w, key)

    def age(key, held):
        del key  # what is read is worked out, not drawn
        return tile.aged(built, held, DAY, compensate=True)

    def age_alone(key, held):
        del key
        return tile.aged(built, held, DAY)

    def gemm(key, x, w):
        del key
        return x @ w

    def of_y(y):
        return error(np.asarray(y), exact_y)

    def of_held(held):
        return error(np.asarray(tile.weights(built, held, 0.0)), exact_w)

    def of_aged(now):
        return error(np.asarray(now.w * now.unit), exact_w)

    function, arguments, check = {
        "product": (product, (old, x), of_y),
        "product_new": (product_new, (held, x), of_y),
        "program": (program, (w,), of_held),
        "age": (age, (held,), of_aged),
        "age_alone": (age_alone, (held,), of_aged),
        "gemm": (gemm, (x, w), of_y),
    }[case]
    call = _timed(function, *arguments)
    return Run(call, lambda: check(call()))


def _trains(length, kind, sizes):
    x, d = train_numbers(sizes, length)
    device = pulsed(
        SHAPES[kind],
        step=PULSE,
        low=-BOUND,
        high=BOUND,
        reference=0.0,
        variation=Variation(SPREAD, SPREAD, SPREAD, 0.01, 0.0, SPREAD),
    )
    start = device.init((sizes.cells, sizes.cells), jax.random.key(0), 0.0)

    def update(state, key, x, d):
        return update_by_trains(device, state, x, d, key, 0.0, rate=RATE, step=PULSE, length=LENGTH)

    compiled = jax.jit(update, donate_argnums=0)  # a training loop keeps its cells in place
    keys, signs = iter(jax.random.split(jax.random.key(7), 100_000)), [jnp.asarray(d), -d]
    state, given = jax.tree.map(jnp.copy, start), jnp.asarray(x)

    def call():
        nonlocal state
        signs.reverse()  # so that cells do not end at their bounds
        state = jax.block_until_ready(compiled(state, next(keys), given, signs[0]))

    def check():
        total, own = np.zeros((sizes.cells, sizes.cells)), jax.jit(update)
        for key in jax.random.split(jax.random.key(8), 20):
            total += np.asarray(own(start, key, given, jnp.asarray(d)).w - start.w)
        return slope(total / 20, x, d)

    return Run(call, check)


def _normals(pairs):
    def draw(key):
        return random_normals(jax.random.bits(key, (2,), jnp.uint32), 0, (pairs,))

    call = _timed(draw)
    return Run(call, lambda: float(np.std(np.asarray(call()))))
