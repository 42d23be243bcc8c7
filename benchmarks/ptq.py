"""Weights of a small language model in few bits: what nearest and GPTQ cost, on one text.

KL divergence of the next token from the float model, on text that the model tells itself; another
sample calibrates. `python benchmarks/ptq.py MODEL --write benchmarks/RESULTS.md`, or with `--json`
one object a line.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from peers.results import table, writable, write_section
from snn_training import machine

from spikebit.quant import models, ptq

SECTION = "ptq"
RECIPES = (  # solver, format, group, clip, and KL on another sample as measured elsewhere
    ("rtn", "int4", None, "absmax", 0.159),
    ("rtn", "int4_asymmetric", None, "absmax", 0.110),
    ("rtn", "int4_asymmetric", None, "search", 0.109),
    ("gptq", "int4_asymmetric", None, "absmax", 0.073),
    ("rtn", "int3_asymmetric", 32, "absmax", 0.563),
    ("gptq", "int3_asymmetric", 32, "search", 0.312),
    ("gptq", "int2_asymmetric", 32, "search", 2.17),
)
TEXTS, TOKENS = 48, 192  # of each sample


def told(model, seed):
    """Texts that the model tells, drawn at temperature 1."""
    start = jnp.full((TEXTS, 1), 1)
    more = models.generate(model, start, TOKENS, temperature=1.0, key=jax.random.key(seed))
    return jnp.concatenate([start, more], 1)


def rows(model):
    """One dictionary a recipe."""
    calibration, text = told(model, 1), told(model, 2)
    for solver, fmt, group, clip, elsewhere in RECIPES:
        begin = time.perf_counter()
        done = ptq.quantize_model(model, ptq.Recipe(solver, fmt, group, clip), calibration)
        seconds = time.perf_counter() - begin
        kl, error = models.divergence(model, done.model, text)
        yield {
            "solver": solver, "weights": fmt, "group": group, "clip": clip, "kl": kl,
            "error": error, "elsewhere": elsewhere, "bits": done.bits_per_weight,
            "seconds": seconds,
        }  # fmt: skip


def report(found, score):
    """The section of RESULTS.md."""
    here = machine()
    lines = [
        [
            f"{r['solver']}, {r['weights']}, {r['clip']}",
            str(r["group"] or "all"),
            f"{r['kl']:.3f} ({r['error']:.3f})",
            f"{r['elsewhere']:g}",
            f"{r['bits']:.2f}",
            f"{r['seconds']:.1f}",
        ]
        for r in found
    ]
    header = ["recipe", "group", "KL", "elsewhere", "bits a weight", "seconds"]
    return (
        f"## A small language model in few bits\n\n{here['date']}, {here['cpu']}, Python "
        f"{here['python']}, jax {jax.__version__}. `python benchmarks/ptq.py MODEL --write "
        f"benchmarks/RESULTS.md`\n\nstories260K; {TEXTS} texts of {TOKENS} tokens that it tells "
        f"itself (seed 2; perplexity {score.perplexity:.2f}), other {TEXTS} to calibrate (seed 1). "
        "KL in nats a token with its standard error over texts; elsewhere is of another sample:"
        f"\n\n{table(header, lines)}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of stories260K")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace its section")
    args = parser.parse_args()
    if not writable(args.write, SECTION):
        return 2
    model, found = models.load(args.model), []
    for row in rows(model):
        found.append(row)
        print(json.dumps(row) if args.json else row, flush=True)
    if args.write:
        write_section(args.write, SECTION, report(found, models.score(model, told(model, 2))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
