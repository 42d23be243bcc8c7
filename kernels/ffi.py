"""The bridge from `jax.jit` to numba: a numba C callback as a handler of XLA's foreign calls.

The idea that belongs here: how XLA hands arrays and threads to compiled numba code, without C++
and without Python in the call. What the code computes stands with its operation family.

XLA calls a handler with the address of a call frame, a C struct of 8-byte words laid down in
`xla/ffi/api/c_api.h`; `jax.ffi.include_dir()` has the header of the jaxlib at hand. Work is shared
over the threads of XLA's own pool: no second pool competes with it for the cores, and any number
of XLA threads may be inside handlers at once.

A handler is made by a function of two values, `api` and `zero`, which numba's disk cache keys on::

    def _negate(api, zero):
        @no_type_check
        def negate(frame):
            if ffi.not_a_call(frame, api):
                return 0
            x, y = ffi.argument(frame, 0, zero), ffi.result(frame, 0, zero)
            y[:, :] = -x
            return 0

        return negate

    ffi.register("negate_f32", _negate, np.float32(0))
    jax.ffi.ffi_call("negate_f32", jax.ShapeDtypeStruct((3, 5), jnp.float32))(x)
"""

import ctypes
import functools
import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, no_type_check

import jax
import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_POSIX = os.name == "posix"
_VERSION, _DESTROY_ERROR, _SCHEDULE, _THREADS = range(4)  # places in the tuple `api()`
_registered = {}  # handlers by name: XLA holds only their addresses
_registering = threading.Lock()

# How functions for handlers are compiled: those called in one place are best inlined by numba,
# which compiles a function again for everything that calls it.
compiled = numba.njit(  # pyright: ignore[reportCallIssue]
    error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
inlined = numba.njit(error_model="numpy", inline="always")


@functools.cache
def api() -> tuple[int, int, int, int, str]:
    """Reads what a handler must know from the header of the installed jaxlib.

    Returns:
        The API version (major + minor * 2**32), the word numbers of three functions in the API
        struct (destroy an error, schedule a task, number of threads), and a digest of the
        sources that handlers are made of: numba's cache sees changes of one file only.

    Raises:
        RuntimeError: when the header lacks one of them, or the process a C function.
    """
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    version = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header))
    # The struct begins with its size, its extensions, the version (3 words), the internal API.
    fields = re.findall(r"^\s*_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_(\w+)\);", header, re.MULTILINE)
    word = {name: 6 + i for i, name in enumerate(fields)}
    for name in ("malloc", "free", *(["sched_yield"] if _POSIX else [])):
        if not llvm.address_of_symbol(name):
            raise RuntimeError(f"the C function {name} cannot be found in this process")
    sources = [p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))]
    try:
        return (
            int(version["MAJOR"]) | int(version["MINOR"]) << 32,
            word["Error_Destroy"],
            word["ThreadPool_Schedule"],
            word["ThreadPool_NumThreads"],
            hashlib.sha256(b"".join(sources)).hexdigest(),
        )
    except KeyError as missing:
        raise RuntimeError(f"the XLA header of this jaxlib has no {missing}") from None


# Memory and C functions, from compiled code: addresses are 64-bit integers.


def _at(builder, address, index):
    return builder.gep(builder.inttoptr(address, _WORD.as_pointer()), [index])


@no_type_check
@intrinsic
def _word(typing, address, index):
    """Reads the word number `index` at `address`, after what its writer wrote before it."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_at(builder, *args), "acquire", 8)

    return types.int64(types.int64, types.int64), generate


@no_type_check
@intrinsic
def _set_word(typing, address, index, value):
    """Writes the word number `index` at `address`."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _at(builder, *args[:2]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@no_type_check
@intrinsic
def _add_word(typing, address, index, value):
    """Adds to a word, atomically; returns what it was."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _at(builder, *args[:2]), args[2], "acq_rel")

    return types.int64(types.int64, types.int64, types.int64), generate


@no_type_check
@intrinsic
def _pointer(typing, address, like):
    """Turns an address into a pointer to elements of the type of the scalar `like`."""
    pointer = types.CPointer(like)

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


@no_type_check
@intrinsic
def _call(typing, function, argument):
    """Calls the C function at an address with one word; returns a word."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(_WORD, [_WORD]).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), [args[1]])

    return types.int64(types.int64, types.int64), generate


def _external(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@no_type_check
@intrinsic
def malloc(typing, size):
    """Allocates memory that lives until it is given to `free`."""

    def generate(context, builder, signature, args):
        return _external(builder, "malloc", _WORD, *args)

    return types.int64(types.int64), generate


@no_type_check
@intrinsic
def free(typing, address):
    """Frees what `malloc` gave."""

    def generate(context, builder, signature, args):
        _external(builder, "free", ir.VoidType(), *args)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@no_type_check
@intrinsic
def _let_others_run(typing):
    """Offers the core to other threads, where the system has that call."""

    def generate(context, builder, signature, args):
        if _POSIX:
            _external(builder, "sched_yield", ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), generate


@no_type_check
@intrinsic
def _c_function(typing, function, zero):
    """Gives the address of a C function `void f(word)` that calls function(word, zero)."""
    arguments = (types.int64, zero)
    function.dispatcher.get_call_template(arguments, {})

    def generate(context, builder, signature, args):
        compiled = function.dispatcher.overloads[arguments]
        context.add_linking_libs((compiled.library,))
        kind = ir.FunctionType(ir.VoidType(), [_WORD])
        outer = ir.Function(builder.module, kind, builder.module.get_unique_name("task"))
        outer.linkage = "internal"
        inside = ir.IRBuilder(outer.append_basic_block())
        values = [outer.args[0], context.get_constant_null(zero)]
        context.call_internal_no_propagate(inside, compiled.fndesc, compiled.signature, values)
        inside.ret_void()
        return builder.ptrtoint(outer, _WORD)

    return types.int64(function, zero), generate


# What a handler reads of its call frame.


@no_type_check
@inlined
def not_a_call(frame, api):
    """Whether there is nothing to compute: XLA asks for the API version, or the frame is strange.

    Answers the question: version and traits (0: none) go into the struct that the frame's
    extension of type 1 points to.
    """
    extension = _word(frame, 1)
    if extension != 0 and _word(extension, 1) & 0xFFFFFFFF == 1:
        _set_word(_word(extension, 3), 3, api[_VERSION])
        return True
    return _word(frame, 5) != 40 or _word(frame, 10) != 40  # sizes of the structs of arrays


@no_type_check
@inlined
def matrix_at(address, shape, like):
    """The matrix at an address, with elements of the type of the scalar `like`."""
    return numba.carray(_pointer(address, like), shape)


@no_type_check
@inlined
def _matrix(buffer, like):
    dims = _word(buffer, 5)
    return matrix_at(_word(buffer, 3), (_word(dims, 0), _word(dims, 1)), like)


@no_type_check
@inlined
def argument(frame, i, like):
    """The i-th argument, a matrix with elements of the type of the scalar `like`."""
    return _matrix(_word(_word(frame, 9), i), like)


@no_type_check
@inlined
def result(frame, i, like):
    """The i-th result, a matrix with elements of the type of the scalar `like`."""
    return _matrix(_word(_word(frame, 14), i), like)


@no_type_check
@inlined
def result_as(frame, i, shape, like):
    """The i-th result, of any number of axes, as a matrix of that shape.

    For a result that takes the place of an argument: XLA copies both where the call stands between
    reshapes, as in `x.reshape(1, -1)`, so such an array comes as it is.
    """
    return matrix_at(_word(_word(_word(frame, 14), i), 3), shape, like)


@no_type_check
@inlined
def _leave(state):
    if _add_word(state, _USERS, -1) == 1:
        free(state)


@no_type_check
@compiled
def _xla(frame, api, function, third, fourth):
    """Calls a function of XLA's API: {size, no extension, context, third, fourth}."""
    struct = np.empty(5, np.int64)
    struct[0], struct[1], struct[2] = 40, 0, _word(frame, 3)
    struct[3], struct[4] = third, fourth
    if function == api[_THREADS]:
        struct[0] = 32
    error = _call(_word(_word(frame, 2), function), struct.ctypes.data)
    if error == 0:
        return True
    struct[0], struct[2] = 24, error
    _call(_word(_word(frame, 2), api[_DESTROY_ERROR]), struct.ctypes.data)
    return False


@no_type_check
@compiled
def other_threads(frame, api):
    """The number of threads of XLA's pool beside the caller, 0 where there is no pool."""
    number = np.ones(1, np.int64)
    _xla(frame, api, api[_THREADS], np.int64(number.ctypes.data), np.int64(0))
    return number[0] - 1


_NEXT, _DONE, _TASKS, _USERS, _FRAME, _EXTRA = range(6)  # words of the state of a shared loop


def shared_loop(body: Callable) -> Callable:
    """Makes a function that runs body(frame, zero, extra, i) for all i < tasks, over threads.

    It is called as `loop(frame, api, zero, extra, tasks, helpers)`. The tasks run on the caller
    and on at most `helpers` free threads of XLA's pool, in any order, and are over when `loop`
    returns. A task must write only what no other task reads or writes, and what it computes must
    not depend on the thread: then results are the same for any number of threads.

    Args:
        body: a `compiled` function; `extra` is an integer of the caller's choice, such as an
            address, `zero` a scalar of the dtype to work with.
    """

    @no_type_check
    @compiled
    def work(state, zero):  # may start after the loop is over: then it only leaves
        while True:
            i = _add_word(state, _NEXT, 1)
            if i >= _word(state, _TASKS):
                break
            body(_word(state, _FRAME), zero, _word(state, _EXTRA), i)
            _add_word(state, _DONE, 1)
        _leave(state)

    @no_type_check
    @inlined
    def loop(frame, api, zero, extra, tasks, helpers):
        state = malloc(64)
        _set_word(state, _NEXT, 0)
        _set_word(state, _DONE, 0)
        _set_word(state, _TASKS, tasks)
        _set_word(state, _USERS, 2 + helpers)  # the caller leaves twice
        _set_word(state, _FRAME, frame)
        _set_word(state, _EXTRA, extra)
        for _ in range(helpers):
            if not _xla(frame, api, api[_SCHEDULE], _c_function(work, zero), state):
                _leave(state)
        work(state, zero)
        while _word(state, _DONE) < tasks:
            _let_others_run()
        _leave(state)

    return loop


# Registration.


def register(name: str, make: Callable[[tuple, Any], Callable], zero: np.generic) -> None:
    """Compiles a handler, or loads it from numba's disk cache, and makes it known to XLA on CPUs.

    Args:
        name: under which `jax.ffi.ffi_call` finds it.
        make: function of `api()` and `zero` that gives the handler (see the top of this file).
        zero: of the dtype that the handler shall work with.
    """
    with _registering:
        if name in _registered:
            return
        handler = make(api(), zero)
        compile_ = functools.partial(numba.cfunc, types.int64(types.int64), error_model="numpy")
        try:
            compiled = compile_(cache=True)(handler)
        except RuntimeError:  # no place to keep a cache
            compiled = compile_()(handler)
        _registered[name] = compiled
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        new.restype = ctypes.py_object
        capsule = new(compiled.address, None, None)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")


@no_type_check
@compiled
def _double_row(frame, zero, extra, i):
    x, y = argument(frame, 0, zero), result(frame, 0, zero)
    for j in range(x.shape[1]):
        y[i, j] = 2 * x[i, j] + extra


_double_rows = shared_loop(_double_row)


def _self_test_handler(api, zero):
    @no_type_check
    def double_rows(frame):
        if not_a_call(frame, api):
            return 0
        _double_rows(
            frame, api, zero, 1, argument(frame, 0, zero).shape[0], other_threads(frame, api)
        )
        return 0

    return double_rows


def self_test() -> None:
    """Sends numbers through the bridge, over threads and back.

    Raises:
        Exception: of any kind, where the bridge does not work.
    """
    register("spikebit_self_test", _self_test_handler, np.int32(0))
    x = np.arange(7 * 3, dtype=np.int32).reshape(7, 3)
    with jax.ensure_compile_time_eval(), jax.default_device(jax.devices("cpu")[0]):
        call = jax.ffi.ffi_call("spikebit_self_test", jax.ShapeDtypeStruct(x.shape, x.dtype))
        y = np.asarray(jax.jit(call)(x))
    if (y != 2 * x + 1).any():
        raise RuntimeError("the bridge between XLA and numba returned wrong numbers")
