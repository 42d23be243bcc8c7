"""Products with 4096 x 4096 weights: spikebit's, and those of torch, ONNX Runtime and XLA.

What belongs here: one maker for each way of multiplying, which gives a function of the number of
the copy of weights to multiply with; no clock. Ways whose package is missing say so by an
ImportError, others by whatever their library raises.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spikebit.kernels.integer import integer_matmul
from spikebit.kernels.layouts import pack
from spikebit.kernels.low_bit import low_bit_matmul
from spikebit.kernels.matrix import quantized_matrix
from spikebit.kernels.quantize_rows import quantize_rows

SIDE, GROUP = 4096, 128
NF4 = np.tanh(np.linspace(-2, 2, 16)).astype(np.float32)  # any uneven table
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

Call = Callable[[int, int], None]  # (rows, number of the copy)


def _inputs():
    random = np.random.default_rng(0)
    return {m: random.standard_normal((m, SIDE)).astype(np.float32) for m in (1, 16, 512)}


def _random_bytes(count, shape):
    random = np.random.default_rng(1)
    return [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


# spikebit: the rounding of x to integers is part of the product.


def _spikebit(bits, group, product, table=None):
    def make(working_set):
        scale = np.full((SIDE // group, SIDE), 0.01, np.float32)
        packed, packing = [], jax.jit(pack)
        count = copies(working_set, bits * SIDE * SIDE // 8)
        for codes in _random_bytes(count, (SIDE, SIDE)):
            w = quantized_matrix(codes >> 8 - bits, scale, bits=bits, table=table)
            packed.append(packing(w))
        inputs = {m: jnp.asarray(x) for m, x in _inputs().items()}
        function = jax.jit(product)

        def call(rows, i):
            function(inputs[rows], packed[i % count]).block_until_ready()

        return call

    return make


def _rounded(x, w):
    rows = quantize_rows(x)
    return integer_matmul(rows.codes, rows.scale, w)


def copies(working_set: int, size: int) -> int:
    """How many weights of a size [bytes] are more than caches remember."""
    return -(-working_set // size)


def _xla(working_set):
    count = copies(working_set, 4 * SIDE * SIDE)
    weights = [jnp.full((SIDE, SIDE), 0.01 * i) for i in range(count)]
    inputs, function = {m: jnp.asarray(x) for m, x in _inputs().items()}, jax.jit(jnp.dot)

    def call(rows, i):
        function(inputs[rows], weights[i % count]).block_until_ready()

    return call


# torch


def _torch_float(name):
    def make(working_set):
        import torch

        torch.set_num_threads(1)
        dtype = getattr(torch, name)
        count = copies(working_set, dtype.itemsize * SIDE * SIDE)
        weights = [torch.full((SIDE, SIDE), 0.01 * i, dtype=dtype) for i in range(count)]
        inputs = {m: torch.from_numpy(x).to(dtype) for m, x in _inputs().items()}

        def call(rows, i):
            with torch.no_grad():
                torch.nn.functional.linear(inputs[rows], weights[i % count])

        return call

    return make


def _torch_int8(working_set):
    import torch

    torch.set_num_threads(1)
    count = copies(working_set, SIDE * SIDE)
    weights = _random_bytes(count, (SIDE, SIDE))
    weights = [torch.from_numpy(w.view(np.int8)).t() for w in weights]  # the faster of its layouts
    inputs = {
        m: torch.from_numpy((50 * x).clip(-127, 127).astype(np.int8)) for m, x in _inputs().items()
    }

    def call(rows, i):
        torch._int_mm(inputs[rows], weights[i % count])

    return call


def _torch_int4(working_set):
    import torch

    torch.set_num_threads(1)
    count = copies(working_set, SIDE * SIDE // 2)
    pack = torch._convert_weight_to_int4pack_for_cpu
    codes = _random_bytes(1, (SIDE, SIDE))[0] >> 4
    one = pack(torch.from_numpy(codes.astype(np.int32)), 2)
    weights = [one.clone() for _ in range(count)]
    scales = torch.full((SIDE // GROUP, SIDE, 2), 0.01, dtype=torch.bfloat16)
    inputs = {m: torch.from_numpy(x).bfloat16() for m, x in _inputs().items()}

    def call(rows, i):
        with torch.no_grad():
            torch._weight_int4pack_mm_for_cpu(inputs[rows], weights[i % count], GROUP, scales)

    return call


# ONNX Runtime


def _onnxruntime(working_set):
    import onnxruntime
    from onnx import TensorProto, helper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def session(codes):
        scale = np.full(SIDE * (SIDE // GROUP), 0.01, np.float32)
        node = helper.make_node(
            "MatMulNBits",
            ["x", "w", "s"],
            ["y"],
            domain="com.microsoft",
            K=SIDE,
            N=SIDE,
            bits=4,
            block_size=GROUP,
            accuracy_level=4,
        )
        tensors = [
            helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
            for name, kind, array in (
                ("w", TensorProto.UINT8, codes),
                ("s", TensorProto.FLOAT, scale),
            )
        ]
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, SIDE]) for name in "xy"
        ]
        graph = helper.make_graph([node], "product", ends[:1], ends[1:], tensors)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    count = copies(working_set, SIDE * SIDE // 2)
    sessions = [session(c) for c in _random_bytes(count, (SIDE, SIDE // GROUP, GROUP // 2))]
    inputs = _inputs()

    def call(rows, i):
        sessions[i % count].run(None, {"x": inputs[rows]})

    return call


OURS = {
    "W4A8": _spikebit(4, GROUP, _rounded),
    "W8A8": _spikebit(8, SIDE, _rounded),
    "W4 table": _spikebit(4, GROUP, low_bit_matmul, NF4),
    "MXFP4 x int8": _spikebit(4, 32, _rounded, np.concatenate([E2M1, -E2M1])),
    "W3A8": _spikebit(3, GROUP, _rounded),
    "W2A8": _spikebit(2, GROUP, _rounded),
}
THEIRS = {
    "torch f32": _torch_float("float32"),
    "torch bf16": _torch_float("bfloat16"),
    "torch int8": _torch_int8,
    "torch int4": _torch_int4,
    "ONNX Runtime 4-bit": _onnxruntime,
    "XLA f32": _xla,
}
