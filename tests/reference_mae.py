"""A float64 NumPy restatement of the MAE forward pass, for comparison with the Flax model."""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def _norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def _linear(x, p):
    return x @ p["kernel"] + p["bias"]


def _gelu(x):
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _attention(x, p, heads):
    width = x.shape[1]
    part = width // heads
    qkv = _linear(x, p["qkv"])
    out = np.zeros_like(x)
    for h in range(heads):
        q, k, v = (qkv[:, i * width + h * part : i * width + (h + 1) * part] for i in range(3))
        scores = q @ k.T / math.sqrt(part)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, h * part : (h + 1) * part] = weights / weights.sum(-1, keepdims=True) @ v
    return _linear(out, p["proj"])


def _blocks(x, p, depth, heads):
    for i in range(depth):
        block = p[f"block_{i}"]
        x = x + _attention(_norm(x, block["norm1"]), block["attn"], heads)
        hidden = _gelu(_linear(_norm(x, block["norm2"]), block["mlp"]["fc1"]))
        x = x + _linear(hidden, block["mlp"]["fc2"])
    return x


def _positions(rows, columns, width):
    table = np.zeros((rows * columns, width))
    quarter = width // 4
    for r in range(rows):
        for c in range(columns):
            for t in range(quarter):
                w = 1.0 / 10000 ** (t / quarter)
                entry = table[r * columns + c]
                entry[t], entry[quarter + t] = math.sin(c * w), math.cos(c * w)
                entry[2 * quarter + t], entry[3 * quarter + t] = math.sin(r * w), math.cos(r * w)
    return table


def predict(params, image, order, num_keep, *, patch_size, encoder, decoder):
    """One image (H, W, 3) -> (N, P) predictions; `encoder`, `decoder` are (width, depth, heads)."""
    high, wide = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    rows, columns = image.shape[0] // high, image.shape[1] // wide
    cut = np.stack(
        [
            image[r * high :, c * wide :][:high, :wide].ravel()
            for r in range(rows)
            for c in range(columns)
        ]
    )
    enc, dec = params["encoder"], params["decoder"]
    tokens = _linear(cut, enc["patch_embed"]["proj"]) + _positions(rows, columns, encoder[0])
    x = np.concatenate([enc["cls_token"][0], tokens[order[:num_keep]]])
    x = _norm(_blocks(x, enc["blocks"], encoder[1], encoder[2]), enc["norm"])

    x = _linear(x, dec["embed"])
    full = np.repeat(dec["mask_token"][0], rows * columns, axis=0)
    full[order[:num_keep]] = x[1:]
    full = full + _positions(rows, columns, decoder[0])
    x = _blocks(np.concatenate([x[:1], full]), dec["blocks"], decoder[1], decoder[2])
    return _linear(_norm(x, dec["norm"]), dec["pred"])[1:]
