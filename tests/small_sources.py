"""Images of a few pixels, and what every source of images has to hold."""

import io

import numpy as np
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import crops


def png(value):
    """A PNG of a colour and a width of its own."""
    buffer = io.BytesIO()
    Image.new("RGB", (4 + value % 3, 4), (value % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def read_all(source):
    """[(encoded image, label)] of a source."""
    return [source.read(i) for i in range(len(source))]


def single_view(data, rng):
    """An example of one random crop."""
    return {"image": crops.random_crop(data, rng, image_size=(4, 4), scale=(0.5, 1.0))}


def assert_a_position_is_its_step(source, workers):
    """Batches from the fourth on, of two processes, are those of one that began at the start."""

    def batches(number, **options):
        with loader.train_stream(
            source, example=single_view, batch_size=4, seed=3, **options
        ) as all_:
            return [next(all_) for _ in range(number)]

    whole = batches(5)
    parts = [batches(2, workers=workers, shard=k, num_shards=2, start_step=3) for k in range(2)]
    for step in range(2):
        for name in ("image", "label", "row", "index"):
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[3 + step][name])
