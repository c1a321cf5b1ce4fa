"""A tiny run that logs what identifies its batches and masks, and may be cut off after a save.

python tests/elastic.py METHOD WORKDIR [--stop_at=STEP] [--processes=N --process=I --port=P]
    [--workers=N] [--mode=MODE]
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dppmask_jax import joining, pretrain
from dppmask_jax.masking import MASKERS
from dppmask_jax.methods import METHODS
from dppmask_jax.runs import checkpoint

STEPS = 20
BATCH = 16


def config(method, workers=0, mode="pmap"):
    return tiny.config(
        method,
        batch_size=BATCH,
        epochs=STEPS / (96 // BATCH),
        data__workers=workers,
        parallel__mode=mode,
        checkpoint__every=4,
        evaluate__every_epochs=99.0,
        evaluate__knn_images=0,
        model__depth=2,
        **({"evaluate__loss_images": 0} if method == "mae" else {}),
    )


def digest(values):
    """(B,) float32 whole numbers below 4096, which means over any devices leave exact."""
    flat = values.reshape(len(values), -1).astype(jnp.uint32)
    weights = np.random.default_rng(0).integers(1, 2**32, flat.shape[1], np.uint32)
    return (jnp.sum(flat * weights, axis=1, dtype=jnp.uint32) >> 20).astype(jnp.float32)


def watched(kind):
    """The method with digests of its batch and masks, weighted by the example, in its metrics."""

    def built(*args, **kwargs):
        method = kind.build(*args, **kwargs)
        (turn,) = method.turns

        def loss(params, extra, batch, key, step):
            _MASKS.clear()
            value, (metrics, aux) = turn.loss(params, extra, batch, key, step)
            (masks,) = _MASKS
            place = 1.0 + batch["index"] % BATCH
            images = batch["image"] if "image" in batch else batch["global_views"]
            views = jnp.sum(digest(masks).reshape(-1, len(place)), axis=0)
            found = {"batch_digest": digest(images), "mask_digest": views}
            return value, (metrics | {n: jnp.mean(place * d) for n, d in found.items()}, aux)

        return method._replace(turns=(turn._replace(loss=loss),))

    return kind._replace(build=built)


_MASKS = []  # of the loss that is being traced


def keep_masks(draw):
    def drawn(*args, **kwargs):
        mask, rest = draw(*args, **kwargs)
        _MASKS.append(mask.mask)
        return mask, rest

    return drawn


def watched_masker(build):
    def built(mask):
        masker = build(mask)
        return masker._replace(draw=keep_masks(masker.draw))

    return built


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("workdir")
    parser.add_argument("--stop_at", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--mode", default="pmap")
    args = parser.parse_args()
    if args.processes > 1:
        joining.initialize(f"127.0.0.1:{args.port}", args.processes, args.process)

    METHODS[args.method] = watched(METHODS[args.method])
    for name, kind in MASKERS.items():
        MASKERS[name] = kind._replace(build=watched_masker(kind.build))

    save = checkpoint.Checkpoints.save

    def save_and_end(self, step, *rest):
        result = save(self, step, *rest)
        if step == args.stop_at:
            self.close()
            os._exit(77)
        return result

    if args.stop_at:
        checkpoint.Checkpoints.save = save_and_end
    print(jax.device_count(), "devices")
    pretrain.train(config(args.method, args.workers, args.mode), args.workdir)


if __name__ == "__main__":
    main()
