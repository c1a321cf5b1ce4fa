"""Training examples of supervised evaluation, made on the host."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dppmask_jax.data.images import crops
from dppmask_jax.data.images.randaugment import rand_augment


def classification_view(
    data: crops.Data,
    rng: np.random.Generator,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    randaugment: float = 0.0,
    single_draw: bool = False,
) -> dict[str, np.ndarray]:
    """The training example of fine-tuning or of a linear probe, for loader.train_stream.

    A random resized crop, mirrored left to right with probability one half, then changed by
    RandAugment. MAE (arXiv 2111.06377) fine-tunes with magnitude 9, and trains linear probes
    without RandAugment and with a single draw.

    Args:
      image_size: (H, W) of the result in pixels.
      scale: smallest and largest share of the image's area.
      flip: whether to mirror at all.
      randaugment: the magnitude, from 0 to 10; 0 leaves RandAugment out.
      single_draw: as for crops.random_crop.

    Returns:
      "image" (H, W, C).

    Raises:
      decode.DecodeError: the bytes are no readable image.
    """
    view = crops.random_crop(data, rng, image_size=image_size, scale=scale, single_draw=single_draw)
    if flip and rng.random() < 0.5:
        view = view[:, ::-1]
    if randaugment:
        image = Image.fromarray(np.ascontiguousarray(view))
        image = rand_augment(image, rng, magnitude=randaugment)
        view = np.asarray(image)
    return {"image": view}
