"""The contestants of benchmarks/input.py, each a process of its own that reads orders from stdin.

    python input_readers.py READER FOLDER SETTINGS

SETTINGS are JSON, see input.py. An order is a line of JSON: {"images": N} reads that many more and
answers the seconds they took, {"crops": [[file, boxes], ...], "to": FILE} writes what the reader
makes of these boxes as uint8. Answers are lines of JSON on the stdout that the process was started
with. Nothing but the reader's own library is imported, so that each can have its own interpreter.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

RATIO = (3 / 4, 4 / 3)
SUFFIXES = (".jpg", ".jpeg")


def files_of(folder):
    return sorted(str(path) for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)


def random_box(rng, width, height, scale):
    """A random resized crop's box by the usual procedure, for those whose library draws none."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


class Ours:
    """The loader that train.py uses."""

    def __init__(self, folder, settings):
        import functools

        from dppmask_jax.data import loader
        from dppmask_jax.data.images import crops
        from dppmask_jax.data.sources import opening

        kinds = settings["views"]
        size, scale = (kinds[0]["size"],) * 2, tuple(kinds[0]["scale"])
        if len(kinds) == 1:
            example = functools.partial(crops.single_view, image_size=size, scale=scale)
        else:
            example = functools.partial(
                crops.multi_crop,
                image_size=size,
                scale=scale,
                local_size=(kinds[1]["size"],) * 2,
                local_scale=tuple(kinds[1]["scale"]),
                num_local=kinds[1]["count"],
                flip=True,
            )
        self._crops = crops
        source = opening.open_source(f"folder:{folder}", "train", val_fraction=0.0)
        self._batches = loader.train_stream(
            source,
            example=example,
            batch_size=settings["batch"],
            seed=0,
            workers=settings["workers"],
        )

    def read(self, count):
        for _ in range(count // len(next(self._batches)["index"]) - 1):
            next(self._batches)

    def crops(self, file, boxes, size):
        data = Path(file).read_bytes()
        views = [self._crops.View(tuple(box), size, size) for box in boxes]
        return self._crops.cut(data, self._crops.open_upright(data), views)

    def close(self):
        self._batches.close()


class Pillow:
    """A plain loop: decode, then resize each box."""

    def __init__(self, folder, settings):
        from PIL import Image

        self._image, self._files = Image, itertools.cycle(files_of(folder))
        self._views, self._batch = settings["views"], settings["batch"]
        self._rng = random.Random(0)

    def _open(self, data):
        return self._image.open(io.BytesIO(data)).convert("RGB")

    def _resize(self, image, box, size):
        left, top, width, height = box
        return np.asarray(
            image.resize(
                (size, size),
                self._image.Resampling.BICUBIC,
                box=(left, top, left + width, top + height),
            )
        )

    def read(self, count):
        batch = [[] for _ in self._views]
        for _ in range(count):
            with open(next(self._files), "rb") as file:
                image = self._open(file.read())
            for views, kind in zip(batch, self._views, strict=True):
                views += [
                    self._resize(
                        image, random_box(self._rng, *image.size, kind["scale"]), kind["size"]
                    )
                    for _ in range(kind["count"])
                ]
            if len(batch[0]) == self._batch * self._views[0]["count"]:
                for views in batch:
                    np.stack(views)
                batch = [[] for _ in self._views]

    def crops(self, file, boxes, size):
        image = self._open(Path(file).read_bytes())
        return [self._resize(image, box, size) for box in boxes]

    def close(self):
        pass


class TfData:
    """tf.data: the box alone is decoded where there is one, then bicubic, antialiased or not."""

    def __init__(self, folder, settings):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        self._tf, self._antialias = tf, settings["antialias"]
        kinds, cores = settings["views"], settings["cores"]
        single = len(kinds) == 1

        def box_of(shape, scale):
            begin, size, _ = tf.image.sample_distorted_bounding_box(
                shape,
                tf.zeros([0, 0, 4]),
                aspect_ratio_range=RATIO,
                area_range=scale,
                max_attempts=10,
                use_image_if_no_bounding_boxes=True,
            )
            return begin[:2], size[:2]

        def views_of(path):
            data = tf.io.read_file(path)
            shape = tf.io.extract_jpeg_shape(data)
            if single:
                begin, size = box_of(shape, kinds[0]["scale"])
                box = tf.concat([begin, size], 0)
                image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
                return (self._resize(image, kinds[0]["size"]),)
            image = tf.io.decode_jpeg(data, channels=3)
            made = []
            for kind in kinds:
                views = []
                for _ in range(kind["count"]):
                    begin, size = box_of(shape, kind["scale"])
                    end = begin + size
                    cut = image[begin[0] : end[0], begin[1] : end[1]]
                    views.append(self._resize(cut, kind["size"]))
                made.append(tf.stack(views))
            return tuple(made)

        files = files_of(folder)
        data = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files), seed=0)
        data = data.map(views_of, num_parallel_calls=cores).batch(settings["batch"]).prefetch(2)
        options = tf.data.Options()
        options.threading.private_threadpool_size = cores
        self._batches = iter(data.with_options(options))

    def _resize(self, image, size):
        tf = self._tf
        resized = tf.image.resize(image, [size, size], "bicubic", antialias=self._antialias)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

    def read(self, count):
        for _ in range(count // len(next(self._batches)[0]) - 1):
            next(self._batches)

    def crops(self, file, boxes, size):
        data = Path(file).read_bytes()
        return [
            self._resize(
                self._tf.io.decode_and_crop_jpeg(data, [top, left, height, width], channels=3), size
            ).numpy()
            for left, top, width, height in boxes
        ]

    def close(self):
        pass


READERS = {"ours": Ours, "pillow": Pillow, "tf.data": TfData}


def main():
    kind, folder, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    # Libraries print what they like to stdout; the answers go to a copy of it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    reader = READERS[kind](folder, settings)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        if "images" in order:
            start = time.perf_counter()
            reader.read(order["images"])
            answer = time.perf_counter() - start
        else:
            made = [reader.crops(*pair, order["size"]) for pair in order["crops"]]
            np.save(order["to"], np.array(made))
            answer = "written"
        print(json.dumps(answer), file=answers)
    reader.close()


if __name__ == "__main__":
    main()
