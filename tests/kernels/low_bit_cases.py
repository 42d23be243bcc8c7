"""The cases that every kernel of a low-bit product is tried on, with the exact answer."""

from typing import NamedTuple

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NF4 = np.linspace(-1, 1, 16, dtype=np.float32) ** 3  # any table: what matters is that it is uneven


class Case(NamedTuple):
    """One product: rows of x, weights (k, n), and how these are coded."""

    m: int
    k: int
    n: int
    bits: int
    group: int
    kind: str  # symmetric, integer (zero point), float (zero point), e2m1, table

    @property
    def name(self):
        return "-".join(map(str, self))


CASES = [
    Case(1, 128, 32, 4, 32, "symmetric"),
    Case(1, 256, 17, 4, 64, "integer"),
    Case(3, 256, 33, 4, 128, "float"),
    Case(17, 128, 16, 4, 128, "e2m1"),
    Case(5, 96, 40, 4, 32, "table"),
    Case(2, 64, 9, 4, 16, "e2m1"),
    Case(16, 256, 64, 8, 128, "symmetric"),
    Case(4, 100, 7, 8, 100, "integer"),
    Case(2, 37, 5, 4, 37, "symmetric"),
    Case(9, 128, 24, 3, 64, "symmetric"),
    Case(2, 64, 19, 3, 32, "float"),
    Case(8, 128, 48, 2, 32, "integer"),
    Case(1, 50, 3, 2, 25, "table"),
    Case(0, 64, 8, 4, 32, "symmetric"),
    Case(3, 64, 0, 4, 32, "symmetric"),
]


def parts(case, seed=0):
    """(codes, scale, zero, table) of a case, as `quantized_matrix` takes them."""
    random = np.random.default_rng(seed)
    groups = case.k // case.group
    codes = random.integers(0, 1 << case.bits, (case.k, case.n)).astype(np.uint8)
    scale = random.uniform(0.25, 1, (groups, case.n)).astype(np.float32)
    zero = table = None
    if case.kind == "integer":
        zero = random.integers(0, 1 << case.bits, (groups, case.n)).astype(np.float32)
    if case.kind == "float":
        zero = random.uniform(0, 1 << case.bits, (groups, case.n)).astype(np.float32)
    if case.kind == "e2m1":
        scale, table = np.exp2(random.integers(-2, 3, scale.shape)).astype(np.float32), E2M1
    if case.kind == "table":
        table = NF4[:: 1 << 4 - case.bits] if case.bits < 4 else NF4
    return codes, scale, zero, table


def weights(case, codes, scale, zero, table):
    """The weights (k, n) in float64, exactly."""
    scale = np.repeat(scale.astype(np.float64), case.group, axis=0)
    if table is not None:
        return table.astype(np.float64)[codes] * scale
    zero = (
        np.full(scale.shape, 1 << case.bits - 1)
        if zero is None
        else np.repeat(zero.astype(np.float64), case.group, axis=0)
    )
    return (codes - zero) * scale


def inputs(case, seed=1):
    """Rows of float32 inputs (m, k)."""
    return np.random.default_rng(seed).standard_normal((case.m, case.k)).astype(np.float32)


def integer_inputs(case, seed=2):
    """Rows of int8 inputs (m, k) with both ends of the range, and a scale for each row (m,)."""
    random = np.random.default_rng(seed)
    x = random.integers(-128, 128, (case.m, case.k)).astype(np.int8)
    return x, random.uniform(0.25, 1, case.m).astype(np.float32)
