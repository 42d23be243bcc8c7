"""Walsh-Hadamard transforms and rotations, alone and with quantization, against exact matrices."""

import functools

import elementwise_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels.hadamard import (
    Transform,
    hadamard,
    hadamard_matrix,
    hadamard_quantize,
    rotate_blocks,
    rotate_quantize,
    transform_reference,
)
from spikebit.kernels.quantize_rows import quantize_rows


@pytest.fixture(params=["cpu", "reference"])
def kind(request, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", request.param)


def exact(n):
    return hadamard_matrix(n) / np.sqrt(n)


@pytest.mark.parametrize("n", [*cases.POWERS[:8], *cases.OTHERS[:8]])
def test_matrices_have_orthogonal_rows_of_ones_and_minus_ones(n):
    matrix = hadamard_matrix(n).astype(int)
    assert (abs(matrix) == 1).all()
    assert (matrix @ matrix.T == n * np.eye(n, dtype=int)).all()


def test_the_matrix_of_n_is_that_of_b_times_that_of_the_power_of_two():
    assert (hadamard_matrix(96) == np.kron(hadamard_matrix(12), hadamard_matrix(8))).all()
    signs = [[(-1) ** (i & j).bit_count() for j in range(16)] for i in range(16)]  # Sylvester's
    assert (hadamard_matrix(16) == np.array(signs)).all()


def check_transform(n):
    def both(x):
        y = hadamard(x)
        return y, hadamard(y, transpose=True)

    matrix = exact(n)
    for x in (cases.rows(3, n), cases.rows(1, n, seed=1)):
        y, back = map(np.asarray, jax.jit(both)(x))
        # no number is larger than the row is long, and its length stays: errors add up like that
        bound = 2**-23 * (n.bit_length() + 36) * np.linalg.norm(x, axis=1).max()
        assert (abs(y - x.astype(np.float64) @ matrix.T) <= bound).all()
        assert (abs(back - x) <= 2 * bound).all()


@pytest.mark.parametrize("n", [*cases.POWERS, *cases.OTHERS])
@pytest.mark.usefixtures("compile_quickly")
def test_it_is_the_product_with_the_matrix_and_the_transposed_one_takes_it_back(n):
    check_transform(n)


@pytest.mark.parametrize("n", [1, 16, 512, 36])
@pytest.mark.usefixtures("compile_quickly")
def test_so_is_the_reference(n, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "reference")
    check_transform(n)


@pytest.mark.parametrize("n", [64, 512, 8192])
def test_the_kernel_of_a_power_of_two_has_the_bits_of_the_reference(n):
    x = jnp.asarray(cases.rows(5, n))
    reference = jax.jit(functools.partial(transform_reference, Transform(1, False)))
    assert (hadamard(x) == reference(x)).all()


@pytest.mark.usefixtures("kind", "compile_quickly")
@pytest.mark.parametrize("n", [16, 24])
def test_its_gradient_is_the_transposed_transform_also_under_vmap_and_jit(n):
    random, matrix = np.random.default_rng(1), exact(n)
    x, dy = (jnp.asarray(random.standard_normal((2, 3, n)), jnp.float32) for _ in range(2))

    def loss(x, dy):
        return (hadamard(x) * dy).sum()

    found = jax.jit(jax.vmap(jax.grad(loss)))(x, dy)
    np.testing.assert_allclose(found, dy @ jnp.asarray(matrix, jnp.float32), atol=1e-5)

    # (|Hx|^2)'' = 2: the derivative of the derivative
    @jax.jit
    def twice(x, dy):
        return jax.vjp(jax.grad(lambda x: (hadamard(x) ** 2).sum()), x)[1](dy)[0]

    np.testing.assert_allclose(twice(x, dy), 2 * dy, atol=1e-5)


@pytest.mark.usefixtures("kind", "compile_quickly")
def test_vmap_over_another_axis():
    x = jnp.asarray(cases.rows(6, 16)).reshape(2, 3, 16)
    batched = jax.jit(jax.vmap(hadamard, in_axes=1, out_axes=1))
    assert (batched(x) == jax.jit(hadamard)(x)).all()


@pytest.mark.usefixtures("kind", "compile_quickly")
@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11), ("float64", 53)])
def test_other_floats_keep_their_dtype_and_precision(dtype, bits):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(cases.rows(2, 48)).astype(dtype)
        y = hadamard(x)
        wide = np.asarray(x).astype(np.float64)
        assert y.dtype == dtype
        bound = max(2.0**-bits, 2.0**-49) * 2 * abs(wide).max()
        assert (abs(np.asarray(y).astype(np.float64) - wide @ exact(48).T) <= bound).all()


@pytest.mark.usefixtures("kind", "compile_quickly")
@pytest.mark.parametrize(("m", "n", "bits", "group"), cases.QUANTIZED)
def test_quantized_rows_are_near_the_transform(m, n, bits, group):
    x = cases.rows(m, n)
    y = x.astype(np.float64) @ exact(n).T
    error = 2**-23 * 50 * abs(x).max()
    found = jax.jit(lambda x: hadamard_quantize(x, bits, group=group))(x)
    cases.is_quantized(*map(np.asarray, found), y, bits, group, error)


@pytest.mark.parametrize("group", [None, 128])
def test_quantizing_on_the_way_gives_the_bits_of_two_steps(group):
    x = jnp.asarray(cases.rows(9, 1024))
    one, two = hadamard_quantize(x, 4, group=group), quantize_rows(hadamard(x), 4, group=group)
    for a, b in zip(one, two, strict=True):
        assert (a == b).all()


@pytest.mark.usefixtures("kind", "compile_quickly")
@pytest.mark.parametrize("g", [32, 64, 128])
def test_blocks_are_rotated_by_any_matrix(g):
    x, random = cases.rows(3, 3 * g), np.random.default_rng(2)
    matrix = np.linalg.qr(random.standard_normal((g, g)))[0].astype(np.float32)
    y = (x.reshape(-1, g).astype(np.float64) @ matrix.astype(np.float64)).reshape(x.shape)
    error = 2**-23 * g * abs(x).max()
    assert (abs(rotate_blocks(jnp.asarray(x), jnp.asarray(matrix)) - y) <= error).all()
    found = rotate_quantize(jnp.asarray(x), jnp.asarray(matrix), 8, group=g)
    cases.is_quantized(*map(np.asarray, found), y, 8, g, error)


@pytest.mark.usefixtures("kind", "compile_quickly")
def test_vmap_over_rows_and_over_matrices():
    @jax.jit
    def run(x, matrices):
        both = jax.vmap(rotate_quantize)(x, matrices)
        each = [rotate_quantize(x[i], matrices[i]) for i in range(2)]
        return both, each, jax.vmap(rotate_quantize, in_axes=(0, None))(x, matrices[1])

    x = jnp.asarray(cases.rows(6, 64)).reshape(2, 3, 64)
    both, each, same = run(x, jnp.stack([jnp.eye(64), jnp.asarray(exact(64), jnp.float32)]))
    for i in range(2):
        for a, b in zip(both, each[i], strict=True):
            assert (a[i] == b).all()
    for a, b in zip(same, each[1], strict=True):
        assert (a[1] == b).all()


@pytest.mark.usefixtures("kind", "compile_quickly")
def test_nothing_comes_of_nothing():
    empty = jnp.zeros((0, 64))
    assert hadamard(empty).shape == (0, 64)
    assert [a.shape for a in hadamard_quantize(empty, group=16)] == [(0, 64), (0, 4), (0, 4)]
    assert rotate_quantize(empty, jnp.eye(32)).codes.shape == (0, 64)


@pytest.mark.usefixtures("compile_quickly")
def test_a_row_with_a_number_that_is_not_finite_stays_visible(monkeypatch):
    x = jnp.asarray(cases.rows(2, 64)).at[0, 3].set(jnp.inf)
    for kind in ("cpu", "reference"):
        monkeypatch.setenv("SPIKEBIT_KERNELS", kind)
        codes, scale, sums = jax.jit(lambda x: hadamard_quantize(x))(x)
        assert jnp.isnan(scale).ravel().tolist() == [True, False]
        assert not codes[0].any()
        assert sums[0, 0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hadamard(x[:, :44]), "has 44 numbers.*12, 20, 28"),
        (lambda x: hadamard(x[:, :0]), "has 0 numbers"),
        (lambda x: hadamard(x.astype(jnp.int32)), "int32.*rows are floats"),
        (lambda x: hadamard_matrix(0), "0 numbers"),
        (lambda x: hadamard_quantize(x, 9), "bits=9.*2 to 8"),
        (lambda x: hadamard_quantize(x, 8, group=24), "group=24.*64 numbers"),
        (lambda x: hadamard_quantize(x, 8, group=0), "group=0"),
        (lambda x: rotate_blocks(x, jnp.eye(24)), r"\(24, 24\) for rows of 64"),
        (lambda x: rotate_blocks(x, jnp.ones((32, 16))), r"\(32, 16\)"),
        (lambda x: rotate_quantize(x, jnp.eye(16)), "32, 64 or 128"),
        (lambda x: rotate_quantize(x, jnp.ones(64)), r"\(64,\)"),
    ],
)
def test_what_cannot_be_transformed_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 64)))


@settings(max_examples=15, deadline=None)
@given(n=st.integers(0, 200), group=st.integers(-1, 70), bits=st.integers(0, 10))
def test_any_setting_either_works_or_is_refused(n, group, bits):
    x = jnp.asarray(cases.rows(2, max(n, 1)))[:, :n]
    try:
        codes, scale, _ = hadamard_quantize(x, bits, group=group)
    except ValueError:
        return
    assert codes.shape == x.shape
    back = codes.reshape(*scale.shape, -1).astype(jnp.float32) * scale[..., None]
    assert jnp.isfinite(back).all()


def test_in_the_interpreter_the_triton_kernels_do_the_same(triton_script):
    triton_script("triton_hadamard.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_the_triton_kernels_compile_without_spills(triton_script, capability):
    triton_script("triton_hadamard.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize(("m", "n", "bits", "group"), cases.QUANTIZED)
def test_on_the_gpu_it_is_near_the_transform(monkeypatch, m, n, bits, group):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    x, error = cases.rows(m, n), 2**-23 * 50 * 50 * 5
    y = x.astype(np.float64) @ exact(n).T
    assert (abs(np.asarray(hadamard(jnp.asarray(x))) - y) <= error).all()
    found = hadamard_quantize(jnp.asarray(x), bits, group=group)
    cases.is_quantized(*map(np.asarray, found), y, bits, group, error)
