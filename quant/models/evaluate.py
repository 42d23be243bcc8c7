"""What a text is worth to a decoder: negative log likelihood a token, perplexity, divergence.

The protocol is in one place, so that numbers of two models are of the same tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from .decoder import Decoder


class Score(NamedTuple):
    """Means over all tokens that are predicted."""

    nll: float  # [nats/token]
    perplexity: float
    tokens: int
    error: float  # standard error of nll over windows; NaN for fewer than two


def windows(tokens: Sequence[int], length: int, bos: int | None) -> Int[np.ndarray, "count length"]:
    """A text cut into windows of `length`, one after the other; what is left over is not used.

    Each window begins with the token `bos`, where there is one, and predicts all that follow it.

    Raises:
        ValueError: a length below 2, or a text shorter than one window.
    """
    own = length - (bos is not None)
    if length < 2 or len(tokens) < own:
        raise ValueError(
            f"windows: {len(tokens)} tokens and windows of {length}; give a text of at least "
            f"{max(own, 1)} tokens, and windows of at least 2."
        )
    whole = np.asarray(tokens, np.int32)[: len(tokens) // own * own].reshape(-1, own)
    return whole if bos is None else np.pad(whole, ((0, 0), (1, 0)), constant_values=bos)


def score(model: Decoder, text: Int[np.ndarray | Array, "count length"], batch: int = 8) -> Score:
    """Negative log likelihood of the tokens after the first of each window.

    Args:
        model: a decoder.
        text: from `windows`, or texts of equal length.
        batch: windows that are computed together.

    Raises:
        ValueError: tokens that the model has not, or more positions than it was made for.
    """
    check("score", model, text)
    each = np.concatenate(
        [np.asarray(token_nll(model, jnp.asarray(part))) for part in _parts(text, batch)]
    )
    mean = float(each.mean(dtype=np.float64))
    by_window = each.mean(1, dtype=np.float64)
    error = by_window.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return Score(mean, float(np.exp(mean)), each.size, float(error))


def divergence(
    reference: Decoder,
    model: Decoder,
    text: Int[np.ndarray | Array, "count length"],
    batch: int = 8,
) -> tuple[float, float]:
    r"""$KL(p_{reference} \| p_{model})$ of the next token, mean and standard error over windows.

    Args:
        reference: the model whose distribution is the right one.
        model: the other one, of the same tokens.
        text: from `windows`.
        batch: windows that are computed together.

    Raises:
        ValueError: as `score`.
    """
    check("divergence", reference, text)
    check("divergence", model, text)
    each = np.concatenate(
        [
            np.asarray(_divergence(reference, model, jnp.asarray(part))).mean(1)
            for part in _parts(text, batch)
        ]
    )
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return float(each.mean(dtype=np.float64)), float(error)


def check(who: str, model: Decoder, text: np.ndarray | Array) -> None:
    """Raises ValueError where a model cannot read a text."""
    c = model.config
    if text.ndim != 2 or 0 in text.shape or text.shape[1] > c.length:
        raise ValueError(
            f"{who}: windows of shape {text.shape}; give (count, length) of at most {c.length}."
        )
    low, high = int(text.min()), int(text.max())
    if low < 0 or high >= c.vocabulary:
        raise ValueError(
            f"{who}: tokens from {low} to {high}, but the model has {c.vocabulary}; is the "
            "tokenizer that of the model?"
        )


def _parts(text, batch):
    return [text[i : i + batch] for i in range(0, len(text), batch)]


@nnx.jit
def token_nll(
    model: Decoder, text: Int[Array, "count length"]
) -> Float[Array, "count length_less_1"]:
    """Of each token after the first."""
    logits = jax.nn.log_softmax(model(text)[:, :-1].astype(jnp.float32))
    return -jnp.take_along_axis(logits, text[:, 1:, None], -1)[..., 0]


@nnx.jit
def _divergence(reference, model, text):
    p, q = (jax.nn.log_softmax(m(text)[:, :-1].astype(jnp.float32)) for m in (reference, model))
    return (jnp.exp(p) * (p - q)).sum(-1)
