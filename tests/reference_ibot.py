"""A float64 NumPy restatement of the iBOT training step, for comparison with the JAX one.

Everything is written from the definitions (iBOT, arXiv 2111.07832; DINO, arXiv 2104.14294; AttMask,
arXiv 2203.12719), with loops where they read better; nothing here is meant to be fast.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _array(x):
    return np.asarray(x, np.float64)


# The network. -----------------------------------------------------------------------------


def gelu(x):
    """The exact GELU, x times the standard normal distribution function of x."""
    x = _array(x)
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def log_softmax(x):
    """Over the last axis."""
    x = _array(x)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x):
    """Over the last axis."""
    x = _array(x)
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def layer_norm(x, scale, bias, epsilon=1e-6):
    """Over the last axis, with the biased variance."""
    x = _array(x)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * _array(scale) + _array(bias)


def head(tokens, params, name="last_layer"):
    """(..., D) -> (..., C) logits; `name` picks the last layer, the MLP is common to both.

    Column c of the last weight is scale_c * direction_c / |direction_c|; no "scale" means 1.
    """
    x = _array(tokens)
    for i in range(3):
        layer = params[f"mlp_{i}"]
        x = x @ _array(layer["kernel"]) + _array(layer["bias"])
        if i < 2:
            x = gelu(x)
    x = x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 1e-12)
    last = params[name]
    direction = _array(last["direction"])
    weight = direction / np.sqrt((direction**2).sum(0, keepdims=True))
    if "scale" in last:
        weight = weight * _array(last["scale"]).reshape(1, -1)
    return x @ weight


def resize_positions(pos, old_grid, new_grid, offset=0.1):
    """(1, 1+N, D) -> (1, 1+n, D), bicubic with a = -0.75; the class row stays as it is.

    A grid is the number of rows and columns, or one number for both. Output i looks at the source
    coordinate (i + .5) * old / (new + offset) - .5 and at the four cells around it, those beyond
    the border being the border cell. Equal grids are left alone, whatever the offset.
    """
    pos = _array(pos)
    old = (old_grid, old_grid) if np.ndim(old_grid) == 0 else tuple(old_grid)
    new = (new_grid, new_grid) if np.ndim(new_grid) == 0 else tuple(new_grid)
    assert pos.shape[:2] == (1, 1 + old[0] * old[1])
    if old == new:
        return pos.copy()
    table = pos[0, 1:].reshape(*old, -1)
    result = np.zeros((*new, pos.shape[-1]))
    for r in range(new[0]):
        for c in range(new[1]):
            for source_r, weight_r in _bicubic_taps(r, old[0], new[0], offset):
                for source_c, weight_c in _bicubic_taps(c, old[1], new[1], offset):
                    result[r, c] += weight_r * weight_c * table[source_r, source_c]
    return np.concatenate([pos[:, :1], result.reshape(1, -1, pos.shape[-1])], axis=1)


def _bicubic_taps(i, old, new, offset):
    """The four (source index, weight) pairs of output i along one axis."""
    coordinate = (i + 0.5) * old / (new + offset) - 0.5
    first = math.floor(coordinate) - 1
    return [
        (min(max(j, 0), old - 1), _cubic(coordinate - j)) for j in (first + t for t in range(4))
    ]


def _cubic(distance, a=-0.75):
    """The cubic convolution kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d < 2:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return 0.0


# The loss. ------------------------------------------------------------------------------------


def class_loss(teacher_logits, student_logits, center, teacher_temp, student_temp=0.1):
    """2 teacher views and 2+n student views of (B, C): the mean over pairs of unlike views."""
    terms = []
    for q, teacher in enumerate(teacher_logits):
        target = softmax((_array(teacher) - _array(center)) / teacher_temp)
        for v, student in enumerate(student_logits):
            if v != q:
                cross_entropy = -(target * log_softmax(_array(student) / student_temp)).sum(-1)
                assert cross_entropy.ndim == 1
                terms.append(cross_entropy.mean())
    return float(np.mean(terms))


def patch_loss(teacher_logits, student_logits, mask, center, teacher_temp, student_temp=0.1):
    """2 views of (B, N, C) logits and (B, N) masks: the mean over all images of both views.

    An image's share is the mean over its masked patches, 0 if it has none.
    """
    terms = []
    for teacher, student, masked in zip(teacher_logits, student_logits, mask, strict=True):
        masked = np.asarray(masked, bool)
        target = softmax((_array(teacher) - _array(center)) / teacher_temp)
        cross_entropy = -(target * log_softmax(_array(student) / student_temp)).sum(-1)
        assert cross_entropy.shape == masked.shape
        images = [
            own[chosen].mean() if chosen.any() else 0.0
            for own, chosen in zip(cross_entropy, masked, strict=True)
        ]
        terms.append(np.mean(images))
    return float(np.mean(terms))


def new_center(center, logits, decay=0.9):
    """Towards the mean of the raw teacher logits over all axes but the last."""
    logits = _array(logits)
    mean = logits.reshape(-1, logits.shape[-1]).mean(0)
    return decay * _array(center) + (1.0 - decay) * mean


# The schedules. ---------------------------------------------------------------------------


def cosine(start, end, epochs, steps_per_epoch):
    """One value a step; begins at `start`, and would reach `end` one step after the last."""
    steps = epochs * steps_per_epoch
    return _half_cosine(start, end, steps)


def learning_rates(peak, final, epochs, steps_per_epoch, warmup_epochs):
    """One value a step; the warm-up ends on the peak, and the cosine begins on it again."""
    warmup = warmup_epochs * steps_per_epoch
    rest = epochs * steps_per_epoch - warmup
    return np.concatenate([np.linspace(0.0, peak, warmup), _half_cosine(peak, final, rest)])


def _half_cosine(start, end, steps):
    values = [
        end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps)) for step in range(steps)
    ]
    return np.array(values, np.float64)


def teacher_temperatures(start, end, warmup_epochs, epochs):
    """One value an epoch, cut off at `epochs` where the warm-up is longer than that."""
    constant = np.full(max(epochs - warmup_epochs, 0), end, np.float64)
    return np.concatenate([np.linspace(start, end, warmup_epochs), constant])[:epochs]


# The optimiser. -------------------------------------------------------------------------------


def clip_per_tensor(grads, limit):
    """Each tensor of a nested dict is scaled by limit / (norm + 1e-6) where that is below 1."""
    if isinstance(grads, dict):
        return {name: clip_per_tensor(value, limit) for name, value in grads.items()}
    grad = _array(grads)
    factor = limit / (np.sqrt((grad**2).sum()) + 1e-6)
    return grad * factor if factor < 1 else grad.copy()


def adamw_step(
    params, grads, state, lr, weight_decay, frozen, decayed, b1=0.9, b2=0.999, epsilon=1e-8
):
    """One step over flat dicts; the state is {name: (m, v, count)}, a missing name is new.

    A name in `frozen` keeps its value and its state; weight decay touches those in `decayed`.
    """
    new_params, new_state = {}, {}
    for name, value in params.items():
        p = _array(value).copy()
        m, v, count = state.get(name, (np.zeros_like(p), np.zeros_like(p), 0))
        if name not in frozen:
            g = _array(grads[name])
            if name in decayed:
                p = p * (1.0 - lr * weight_decay)
            count = count + 1
            m = b1 * _array(m) + (1.0 - b1) * g
            v = b2 * _array(v) + (1.0 - b2) * g**2
            m_hat, v_hat = m / (1.0 - b1**count), v / (1.0 - b2**count)
            p = p - lr * m_hat / (np.sqrt(v_hat) + epsilon)
        new_params[name], new_state[name] = p, (m, v, count)
    return new_params, new_state


def ema(teacher, student, momentum):
    """The teacher after the step; names that only one of the two has play no part."""
    return {
        name: momentum * _array(value) + (1.0 - momentum) * _array(student[name])
        if name in student
        else _array(value).copy()
        for name, value in teacher.items()
    }


# The masks. --------------------------------------------------------------------------------


def ratio_bounds(ratios, variations):
    """The (smallest nonzero, largest) ratio of the list draw; (0, 0) if it gives only zeros.

    One variation serves all ratios. An entry that is not always 0 counts with its lower end, which
    is 0 itself if the variation equals the ratio: then there is no smallest one.
    """
    ratios, variations = np.atleast_1d(ratios), np.atleast_1d(variations)
    variations = np.broadcast_to(variations, ratios.shape)
    assert (ratios >= variations).all() and (variations >= 0).all()
    entries = [
        (float(p - v), float(p + v)) for p, v in zip(ratios, variations, strict=True) if p + v > 0
    ]
    if not entries:
        return 0.0, 0.0
    return min(low for low, _ in entries), max(high for _, high in entries)


def attmask(weights, num_masked, variant, revealed=None):
    """D: the (N,) mask of one image from its (N,) attention weights; ties go to the lower index.

    For "hint", `revealed` are the distinct indices to show again: all of them must be among the
    top int(N / 10), but they need not all be masked.
    """
    assert variant in ("high", "low", "hint")
    weights = _array(weights)
    order = np.argsort(weights if variant == "low" else -weights, kind="stable")
    mask = np.zeros(len(weights), bool)
    mask[order[:num_masked]] = True
    if variant == "hint":
        revealed = [int(i) for i in revealed]
        top = np.sort(weights)[::-1][: int(len(weights) * 0.1)]
        assert len(set(revealed)) == len(revealed) <= len(top), (revealed, len(top))
        assert all(weights[i] >= top[-1] for i in revealed), (revealed, top)
        mask[revealed] = False
    return mask
