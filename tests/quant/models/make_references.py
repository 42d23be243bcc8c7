"""Makes `references/`: small random models as `transformers` saves them, and what they answer.

Run with torch and transformers, for a model or a version that is not there yet:
`python tests/quant/models/make_references.py`. Numbers fit float16: nothing is lost in the files.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers as tf

FOLDER = Path(__file__).parent / "references"
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHARED = {"num_key_value_heads": 2}
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
MODELS = {
    "llama2": ("Llama", SHARED),
    "llama3": ("Llama", {**SHARED, "rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "llama_biases": ("Llama", {**SHARED, "attention_bias": True, "mlp_bias": True}),
    "llama_linear": ("Llama", {**SHARED, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama_yarn": ("Llama", {**SHARED, "rope_scaling": YARN}),
    "llama_tied": ("Llama", {**SHARED, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**SHARED, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**SHARED, **WINDOWS}),
    "qwen3_in_parts": ("Qwen3", {**SHARED, "head_dim": 8}),
    "bert": ("Bert", {}),
}


def make(name, family, extra):
    torch.manual_seed(sum(map(ord, name)))
    config = getattr(tf, f"{family}Config")(**SIZES, **extra)
    kind = "Model" if family == "Bert" else "ForCausalLM"
    model = getattr(tf, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        for path, p in model.named_parameters():
            norm = "norm" in path.lower() and path.endswith("weight")
            p.copy_((0.25 * torch.randn_like(p) + norm).half().float())
    tokens = torch.randint(0, SIZES["vocab_size"], (2, 40))
    real = torch.ones_like(tokens)
    real[1, 25:] = 0
    with torch.no_grad():
        if family == "Bert":
            answer = model(tokens, attention_mask=real).last_hidden_state
        else:
            answer = model(tokens).logits
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    size = "5KB" if name.endswith("parts") else "1GB"
    model.half().save_pretrained(folder, max_shard_size=size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    arrays = {"tokens": tokens.numpy(), "real": real.numpy() != 0, "answer": answer.numpy()}
    np.savez_compressed(folder / "answer.npz", **arrays)


if __name__ == "__main__":
    for name, (family, extra) in MODELS.items():
        make(name, family, extra)
    versions = {"torch": torch.__version__, "transformers": tf.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
