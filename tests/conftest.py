"""Settings every test runs under: no silent dtype promotion, no random key used twice."""

import os

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
os.environ.setdefault("MPLBACKEND", "Agg")
