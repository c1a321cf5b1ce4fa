"""Using a run after training: its encoder, its head, its masks, its reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import checkpoint
from dppmask_jax import workdir as workdir_files
from dppmask_jax.data import loader, sources
from dppmask_jax.data.classes import class_list
from dppmask_jax.data.source import only_classes
from dppmask_jax.errors import InputError
from dppmask_jax.methods import METHODS, supervised
from dppmask_jax.models.vit import SIZES

CLASSIFIER = "classifier"


def kind_of(config) -> str | None:
    """What a run with this config is: a method of pre-training, CLASSIFIER for a fine-tuning, None
    for what is no run."""
    if config.get("method") in METHODS:
        return config.method
    task = config.get("task")
    fine_tunes = task == "finetune" or (task == "multilabel" and config.get("train") == "finetune")
    return CLASSIFIER if fine_tunes else None


class Run:
    """A trained model with what its config says about it.

    Attributes:
      config: the run's config.
      kind: see `kind_of`.
      step: the optimiser step of the checkpoint.
      method: the functions of the method, see `methods.base.Method`.
      params, extra: what they take.
      encoder: the parameters of the encoder that `encode` runs. That of a classifier which pools
        patch tokens has no final layer norm; one with scale 1 and shift 0 stands there.
      knn_feature: which tokens the run trains, "patches" or "cls".
      selection_settings: the keyword arguments of `dpp.select` that go with `features`.
      num_masked: (fewest, most) patches that a masked view has masked.
      has_masks, can_reconstruct, has_attention: whether the method answers to `features` (and so
        has the two above), to `reconstruct` and to `attention`.
    """

    def __init__(self, config, params, extra, step: int):
        self.config = config
        self.kind = kind_of(config)
        self.step = step
        self.params, self.extra = params, extra
        if self.kind == CLASSIFIER:
            method = supervised.finetune(
                config,
                num_outputs=len(params["head"]["bias"]),
                several=config.task == "multilabel",
            )
            self.knn_feature = {"mean": "patches", "cls": "cls"}[config.model.pool]
        else:
            method = METHODS[config.method](config, steps_per_epoch=1, total_steps=max(step, 1))
            self.knn_feature = config.evaluate.knn_feature
        self.method = method
        self.selection_settings = method.selection
        self.num_masked = method.num_masked
        self.has_masks = method.features is not None
        self.can_reconstruct = method.reconstruct is not None
        self.has_attention = method.attention is not None
        self.encoder = method.encoder_of(params, extra)
        self._encode = jax.jit(method.encode)
        self._features = jax.jit(method.features) if self.has_masks else None
        self._reconstruct = (
            jax.jit(method.reconstruct, static_argnames="borrow_statistics")
            if self.can_reconstruct
            else None
        )
        self._attention = jax.jit(method.attention) if self.has_attention else None

    def encode(self, images) -> dict[str, Any]:
        """{"cls": (B, D), "patches": (B, N, D), "patches_prenorm": (B, N, D)} of all patches."""
        return self._encode(self.params, self.extra, self._checked(images))

    def features(self, images):
        """(B, N, D): what the selection kernel sees of each patch."""
        return self._features(self.params, self.extra, self._checked(images))

    def reconstruct(self, images, order, borrow_statistics: bool = False):
        """(B, H, W, 3) float32 in [0, 1]: visible patches as they are, hidden ones predicted.

        A model trained with `loss.norm_pix` predicts each patch without its brightness and
        contrast. Those of hidden patches are estimated from the visible ones, see
        `patches.from_neighbours`, so that the pixels of hidden patches change nothing.

        Args:
          images: as for `encode`.
          order: (B, N) int32, visible patches first. How many are visible is the run's.
          borrow_statistics: take the true mean and deviation of each hidden patch instead, which
            no model could know. Without `loss.norm_pix` nothing is borrowed.
        """
        return self._reconstruct(
            self.params,
            self.extra,
            self._checked(images),
            jnp.asarray(order),
            borrow_statistics=bool(borrow_statistics),
        )

    def attention(self, images):
        """(B, heads, N): how much the class token attends to each patch in the last block."""
        return self._attention(self.params, self.extra, self._checked(images))

    def example_images(self, num: int) -> np.ndarray:
        """Validation images of the run's own data (training images where there are none).

        Returns:
          (at most `num`, H, W, 3) uint8, spread evenly over the split.

        Raises:
          InputError: the data is no longer there.
        """
        train_source, val_source = open_data(self.config)
        source = val_source or train_source
        count = min(num, len(source))
        indices = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
        (batch,) = loader.eval_batches(
            source, image_size=tuple(self.config.image_size), batch_size=count, indices=indices
        )
        return batch["image"][batch["valid"]]

    def _checked(self, images):
        images = jnp.asarray(images)
        height, width = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (height, width, 3):
            raise InputError(
                f"images have shape {tuple(images.shape)}; this run takes (B, {height}, {width}, 3)"
                ", uint8, or float from 0 to 1"
            )
        return images


def load_run(workdir: str | Path) -> Run:
    """Loads the newest checkpoint of a run.

    Args:
      workdir: what train.py wrote, the `eval_finetune/seed-N` of a fine-tuning, or what
        `dppmask_jax.weights` imported.

    Raises:
      InputError: there is no checkpoint in `workdir`, or one of something else.
    """
    meta, state, step = checkpoint.read_newest(workdir)
    config = workdir_files.from_json(meta.get("config", {}))
    if kind_of(config) is None:
        raise InputError(
            f"the checkpoint in {workdir} is neither a pre-training run nor a fine-tuning; name a "
            "workdir that train.py wrote, or the seed-N folder of a fine-tuning"
        )
    return Run(config, state["params"], state.get("extra", {}), step)


def open_data(config):
    """(training source, validation source or None) of a config's data, of `data.classes` only.

    Raises:
      InputError: a missing, empty or unprepared source, or classes that it lacks.
    """
    data = config.data
    names = class_list(data.classes) if data.classes else ()
    splits = sources.open_splits(
        data.source, data_dir=data.dir or None, val_fraction=data.val_fraction
    )
    if not names:
        return splits
    where = f"config.data.classes={data.classes}"
    return tuple(split and only_classes(split, names, where) for split in splits)


class Encoder:
    """A trained encoder. Call it with images.

    Attributes:
      image_size: (height, width) it takes.
      grid: (rows, columns) of patches.
      width: number of channels D of its outputs.
    """

    def __init__(self, run: Run):
        self._run = run
        self.image_size = tuple(run.config.image_size)
        self.grid = tuple(side // run.config.model.patch_size for side in self.image_size)
        self.width = SIZES[run.config.model.size].width

    def __call__(self, images) -> dict[str, Any]:
        """
        Args:
          images: (B, H, W, 3) uint8, or float from 0 to 1, of the run's image size.

        Returns:
          {"cls": (B, D), "patches": (B, N, D)} float32, after the final layer norm, all patches
          visible; patches row by row.

        Raises:
          InputError: another shape.
        """
        out = self._run.encode(images)
        return {"cls": out["cls"], "patches": out["patches"]}


def load_encoder(workdir: str | Path) -> Encoder:
    """The encoder of a run's newest checkpoint.

    Raises:
      InputError: there is no checkpoint in `workdir`.
    """
    return Encoder(load_run(workdir))
