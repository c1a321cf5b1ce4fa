"""The augmented views that methods compare, and the keys of all that is random in them.

`config.data` has the fields of `data.images.views`. Local views are iBOT's and DINO's: a method
without the field `data.local_views` has none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import pixel_format
from dppmask_jax.data.images import views

GLOBAL_VIEWS = 2


def num_views(data) -> int:
    """V: how many views of an example `config.data` asks for."""
    return GLOBAL_VIEWS + data.get("local_views", 0)


def keys_of_views(data, key, index):
    """(V B, 3) keys: of a view's colours, of its mask, and one for what else is random
    in it, such as drop-path.

    Views stand one after the other, each with all examples, the two global ones first.

    Args:
      data: `config.data`.
      key: of the step.
      index: (B,) int32, the positions of the examples in the stream.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    keys = jnp.concatenate(
        [jax.vmap(jax.random.fold_in, (0, None))(keys, view) for view in range(num_views(data))]
    )
    return jax.vmap(lambda k: jax.random.split(k, 3))(keys)


def augmented(data, batch, keys):
    """Normalised images (2B, H, W, C) and (n B, h, w, C), or None without local views; `keys` are
    the (V B,) of the views' colours, and `batch` is of `crops.multi_crop`."""
    globals_ = jnp.concatenate(augmented_globals(data, batch, keys))
    if num_views(data) == GLOBAL_VIEWS:
        return globals_, None
    local = jnp.moveaxis(batch["local_views"], 1, 0)
    local = local.reshape(-1, *local.shape[2:])
    return globals_, _augment(data, local, keys[len(globals_) :], data.blur_prob[2], 0.0)


def global_maps(batch, name: str):
    """(2B, H, W): a map that came with the images, as their two global views show it; None where
    they have none."""
    maps = batch.get(f"global_{name}")
    return None if maps is None else jnp.concatenate([maps[:, 0], maps[:, 1]])


def augmented_globals(data, batch, keys):
    """The two global views, each (B, H, W, C). They are one batch of images, for which a program
    is compiled once, and each is computed as far as the other needs it."""
    num, both = len(batch["index"]), batch["global_views"]
    blur, solarize = (np.repeat(probs, num) for probs in zip(*_chances(data), strict=True))
    images = jnp.concatenate([both[:, 0], both[:, 1]])
    return tuple(jnp.split(_augment(data, images, keys[: 2 * num], blur, solarize), 2))


def augmented_second(data, batch, keys):
    """The second global view alone, (B, H, W, C)."""
    num = len(batch["index"])
    return _augment(data, batch["global_views"][:, 1], keys[num : 2 * num], *_chances(data)[1])


def _chances(data):
    """Probabilities of a blur and of solarising, of either global view."""
    return (data.blur_prob[0], 0.0), (data.blur_prob[1], data.solarize_prob)


def _augment(data, images, keys, blur_prob, solarize_prob):
    return views.augment_view(
        images,
        keys,
        jitter=tuple(data.jitter),
        jitter_prob=data.jitter_prob,
        grey_prob=data.grey_prob,
        blur_prob=blur_prob,
        blur_sigma=tuple(data.blur_sigma),
        solarize_prob=solarize_prob,
        pixels=pixel_format.of_data(data),
    )
