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


SOFTMAX = [(1, 1), (3, 5), (7, 33), (4, 64), (2, 200)]


def softmax_inputs(m, k, masked, seed=4):
    """Inputs (m, k), and a mask with a silent row, or None."""
    random = np.random.default_rng(seed)
    x = (2 * random.standard_normal((m, k))).astype(np.float32)
    mask = random.random((m, k)) < 0.6 if masked else None
    if masked and m > 1:
        mask[1] = False
    return x, mask


def is_low_bit_softmax(p, x, bits, clip, mask=None):
    """Asserts what p must be, in exact arithmetic; codes at a tie may be either."""
    last = 2**bits - 1
    for i in range(len(x)):
        on = np.ones(x.shape[1], bool) if mask is None else mask[i]
        assert (p[i][~on] == 0).all()
        if not on.any():
            continue
        t = x[i][on].astype(np.float64) - float(x[i][on].max())
        low = max(float(np.ravel(clip[i])[0]), t.min())
        step = -low / last
        units = np.minimum(-t / step, last) if step > 0 else 0 * t
        code = np.rint(units)
        tied = abs(abs(units - code) - 0.5) < 1e-4
        value = np.exp(-code * step)
        slack = (value * tied).sum() * (np.exp(step) - 1) / value.sum() + 3e-6
        clear = ~tied
        expected = value / value.sum()
        assert (abs(p[i][on] - expected)[clear] <= slack * expected[clear]).all()
        assert abs(p[i].sum(dtype=np.float64) - 1) < 1e-5
