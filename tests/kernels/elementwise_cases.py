"""The cases that kernels on rows are tried on, and what their answers must be (numpy only)."""

import numpy as np

POWERS = (1, 2, 4, 8, 16, 64, 128, 256, 512, 2048, 4096, 8192)
OTHERS = (12, 20, 28, 36, 40, 48, 160, 576, 1152, 28 * 128)
QUANTIZED = [  # rows, n, bits, group
    (3, 64, 8, None),
    (2, 256, 4, 32),
    (5, 40, 8, 20),
    (1, 48, 2, 1),
    (7, 12, 3, None),
    (2, 1024, 8, 128),
]


def rows(m, n, seed=0):
    """Rows of float32 numbers, one of them with an outlier and one without any number but 0."""
    x = np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32)
    x[0, n // 2] *= 50
    if m > 2:
        x[2] = 0
    return x


def is_quantized(codes, scale, sums, y, bits, group, error=0.0):
    """Asserts what codes of y (float64) must be; `error` is what y may be off by."""
    groups = scale.shape[1]
    parts = y.reshape(len(y), groups, -1)
    steps = 2 ** (bits - 1) - 1
    amax = abs(parts).max(-1)
    expected = np.where(amax > 0, amax / steps, 1)
    assert (abs(scale - expected) <= error / steps + 2**-23 * expected).all()
    values = codes.reshape(parts.shape).astype(np.float64)
    assert (abs(values) <= steps).all()
    step = scale[..., None].astype(np.float64)
    assert (abs(values * step - parts) <= step / 2 * (1 + 2**-20) + error).all()
    assert (values.sum(-1) == sums).all()
