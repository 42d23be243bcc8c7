"""Language models and encoders: read from checkpoints, run, and asked what a text is worth."""

from .decoder import Decoder, DecoderConfig, random_fill
from .encoder import Encoder, EncoderConfig
from .evaluate import Score, divergence, score, windows
from .generate import generate
from .load import load, load_tokenizer

__all__ = [
    "Decoder", "DecoderConfig", "Encoder", "EncoderConfig", "Score", "divergence", "generate",
    "load", "load_tokenizer", "random_fill", "score", "windows",
]  # fmt: skip
