"""The command `spikebit evaluate MODEL --text FILE`: what a text is worth to a model.

What is computed stands in `evaluate.py`; heavy imports wait until the command runs.
"""

import argparse
import time
from pathlib import Path
from typing import Any

PROTOCOL = (
    "windows one after the other, each predicted from its own beginning; the rest is left out"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", help="folder of Hugging Face's layout, or a llama2.c file")
    parser.add_argument("--text", required=True, metavar="FILE", help="a file of UTF-8 text")
    parser.add_argument("--length", type=int, help="tokens of a window (as the model allows)")
    parser.add_argument("--batch", type=int, default=8, help="windows computed together (8)")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Scores a text.

    Returns:
        model, text, nll [nats/token], perplexity, error (of nll), tokens, length, seconds and the
        protocol in words.

    Raises:
        ValueError: a model that is none or predicts no tokens, a text that cannot be read or is too
            short.
    """
    from .decoder import Decoder
    from .evaluate import score, windows
    from .load import load, load_tokenizer

    begin = time.perf_counter()
    if args.batch < 1:
        raise ValueError(f"evaluate: --batch is {args.batch}; at least one window is computed.")
    try:
        words = Path(args.text).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.text}: no UTF-8 text ({error}).") from None
    model, tokenizer = load(args.model), load_tokenizer(args.model)
    if not isinstance(model, Decoder):
        raise ValueError(f"{args.model}: an encoder predicts no next token; give a decoder.")
    length = args.length or min(model.config.length, 2048)
    found = score(model, windows(tokenizer.encode(words), length, tokenizer.bos), args.batch)
    return {
        "model": args.model,
        "text": args.text,
        "nll": found.nll,
        "perplexity": found.perplexity,
        "error": None if found.error != found.error else found.error,
        "tokens": found.tokens,
        "length": length,
        "seconds": round(time.perf_counter() - begin, 3),
        "protocol": PROTOCOL,
    }
