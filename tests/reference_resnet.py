"""Parameters of the autoencoder oracles, by the formula that their arrays were computed with, in
the names of our modules. The layouts are PyTorch's: a convolution is (out, in, height, width), a
transposed one (in, out, height, width) and mirrored."""

import re

import numpy as np


def variables(oracle, shape_of):
    """{"params", "batch_stats"} of `AutoencoderModule`, float64; running statistics 0 and 1.

    Args:
      shape_of: the `resnet_module.Shape`.
    """
    last_layer = 3 if shape_of.bottleneck else 2
    found = {"params": {}, "batch_stats": {}}
    for i, (name, shape) in enumerate(zip(oracle["names"], oracle["shapes"], strict=True)):
        shape = tuple(int(side) for side in str(shape).split("x"))
        value = _by_formula(i, str(name), shape)
        path, is_transposed = _path(str(name), shape_of.blocks, last_layer)
        if value.ndim == 4 and is_transposed:
            value = value[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        _put(found["params"], path, value)
        if path[-1] == "scale":
            _put(found["batch_stats"], (*path[:-1], "mean"), np.zeros(shape))
            _put(found["batch_stats"], (*path[:-1], "var"), np.ones(shape))
    return found


def images(shape=(4, 3, 64, 64)):
    """(4, 64, 64, 3) float64 from 0 to 1."""
    j = np.arange(np.prod(shape), dtype=np.float64)
    return (0.5 + 0.5 * np.sin(0.37 * j + 0.001 * j**1.2)).reshape(shape).transpose(0, 2, 3, 1)


def _by_formula(i, name, shape):
    j = np.arange(np.prod(shape), dtype=np.float64)
    if len(shape) == 1 and name.endswith("weight"):
        return 0.8 + 0.1 * np.sin(0.7 * j + i)
    if len(shape) == 1:
        return 0.05 * np.sin(0.3 * j + i)
    h = np.modf((j + 1) * (0.6180339887498949 + 0.01 * i))[0]
    spread = np.modf(97.409091034 * h)[0] - 0.5
    fan = shape[1] * shape[2] * shape[3]
    return (np.sqrt(2 / fan) * np.sqrt(12) * spread).reshape(shape)


def _path(name, blocks, last_layer):
    """(path in our tree, whether it is a transposed convolution)."""
    part, stage, *rest = name.split(".")
    is_encoder, stage, kind = part == "encoder", int(stage.removeprefix("conv")), rest[-1]
    if is_encoder and stage == 1:
        return (part, *_leaf("stem", rest[0] == "1", kind)), False
    if not is_encoder and stage == 5:
        return (part, *_leaf("", rest[0] == "0", kind)), rest[0] == "2"
    counts = blocks if is_encoder else blocks[::-1]
    place = stage - (2 if is_encoder else 1)
    # The first stage of the encoder counts its pooling as block 0.
    within = int(rest[0].split()[0]) - (is_encoder and stage == 2)
    is_norm = rest[2] == ("1" if is_encoder else "0")
    layer = re.search(r"weight_layer(\d)", name)
    leaf = _leaf("" if layer else "shortcut", is_norm, kind, layer.group(1) if layer else "")
    doubles = not is_encoder and within == counts[place] - 1
    at_the_end = layer is None or int(layer.group(1)) == last_layer
    return (part, f"block_{sum(counts[:place]) + within}", *leaf), doubles and at_the_end


def _leaf(of, is_norm, kind, number=""):
    module = f"{of}_{'norm' if is_norm else 'conv'}".strip("_") + number
    return module, ({"weight": "scale", "bias": "bias"}[kind] if is_norm else "kernel")


def _put(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
