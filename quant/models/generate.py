"""Text from a decoder: the likeliest token each time, or one that is drawn.

The cache of keys and values grows by a token a step, in one compiled loop. What a text is worth to
a model belongs to `evaluate`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .decoder import Decoder


def generate(
    model: Decoder,
    tokens: Int[Array, "batch time"],
    steps: int,
    *,
    temperature: float | int = 0.0,
    key: PRNGKeyArray | None = None,
) -> Int[Array, "batch steps"]:
    """Continues texts by so many tokens each.

    Args:
        model: a decoder.
        tokens: of the texts so far, all equally long.
        steps: tokens to add.
        temperature: by which logits are divided before one is drawn; 0: the likeliest is taken.
        key: for the draws; of each step one of its own.

    Raises:
        ValueError: no tokens to begin with, more positions than the model was made for, a
            temperature below 0, or one above 0 without a key.
    """
    batch, time = tokens.shape
    if time < 1 or steps < 0 or time + steps > model.config.length:
        raise ValueError(
            f"generate: {time} tokens and {steps} more; the model needs one to begin with and has "
            f"{model.config.length} positions."
        )
    if temperature < 0 or (temperature > 0 and key is None):
        raise ValueError(
            f"generate(temperature={temperature}): draws need a temperature above 0 and a key; "
            "without them leave both out."
        )
    key = jax.random.key(0) if key is None else key
    return _generate(model, tokens, key, float(temperature), steps, batch)


@functools.partial(nnx.jit, static_argnames=("temperature", "steps", "batch"))
def _generate(
    model: Decoder, tokens: Array, key: Array, temperature: float, steps: int, batch: int
) -> Array:
    def chosen(logits: Float[Array, "batch vocabulary"], i: Array) -> Array:
        if temperature == 0:
            return jnp.argmax(logits, -1).astype(tokens.dtype)
        drawn = jax.random.categorical(jax.random.fold_in(key, i), logits / temperature)
        return drawn.astype(tokens.dtype)

    logits, cache = model.step(tokens, model.empty_cache(batch, tokens.shape[1] + steps))

    def one(state: tuple, i: Array) -> tuple[tuple, Array]:
        logits, cache = state
        token = chosen(logits, i)
        logits, cache = model.step(token[:, None], cache)
        return (logits[:, -1], cache), token

    return jax.lax.scan(one, (logits[:, -1], cache), jnp.arange(steps))[1].T
