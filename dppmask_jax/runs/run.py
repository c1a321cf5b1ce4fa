"""Using a run after training: its encoder, its head, its masks, its reconstructions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import patches, pixel_format
from dppmask_jax.data import loader
from dppmask_jax.data.sources import opening
from dppmask_jax.data.sources.base import only_classes
from dppmask_jax.data.sources.classes import class_list
from dppmask_jax.errors import InputError
from dppmask_jax.methods import METHODS, supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import encoders
from dppmask_jax.runs import checkpoint, encoder_files, image_parts, proposed
from dppmask_jax.runs import projection as projections
from dppmask_jax.runs import workdir as workdir_files
from dppmask_jax.runs.image_sizes import as_used, checked_images, resized
from dppmask_jax.runs.kinds import CLASSIFIER, ENCODER, kind_of, method_of
from dppmask_jax.runs.projection import Projection
from dppmask_jax.words import with_article

_TRIED = 64  # images, in search of an example that can be read


class Run:
    """A trained model with what its config says about it.

    Args:
      config, params, extra, step: of the checkpoint.
      image_size: (height, width) to take images of; None is what the run was trained with. For
        another size positions are resized (PyTorch's bicubic interpolation), learned or fixed,
        those of a decoder as well.
      dtype: of matrix products, "float32" or "bfloat16"; None is the run's.
      projection: of the patch tokens after the final norm, see `runs.projection`. It is attached to
        the encoder: what encodes gives projected patches; class tokens, what is before the norm
        and a decoder know nothing of it.

    Raises:
      InputError: the size is no multiple of the patches or leaves none visible, or another dtype.

    Attributes:
      config: the run's config, as it was trained.
      image_size: (height, width) of the images that it takes.
      resized: how positions came to another image size, in words; "" where it is the run's own.
      kind: see `kind_of`.
      label: the kind in words, as "iBOT"; of an encoder alone, whose it is.
      name: the label with its article, as "an iBOT".
      step: the optimiser step of the checkpoint.
      projection: as given.
      history: what was changed in the run on the way, see `history`; empty for nearly all.
      data_identity: of the training data, see `data.sources.identity`; None if unknown.
      method: the functions of the method, see `methods.base.Method`.
      params, extra: what they take.
      encoder: the parameters of the encoder that `encode` runs; None where the method trains none.
        That of a classifier which pools patch tokens has no final layer norm; one with scale 1 and
        shift 0 stands there.
      pixels: of the images that it takes, see `pixel_format.Pixels`.
      knn_feature: which tokens the run trains, "patches" or "cls".
      has_class_token: whether `encode` gives one; else the mean patch token stands for it.
      num_hidden: (fewest, most) patches that a masked view hides.
      has_masks, can_reconstruct, has_attention: whether the method answers to `masks` (and so has
        the two above), to `reconstruct` and to `attention`.
      can_restore: whether it undoes a corruption, as `corrupted` and `restored` show.
      gives: what its masks can be drawn from, of `methods.base.MethodKind.gives`.
      mask_recipes: see `methods.base.MethodKind`.
    """

    def __init__(
        self,
        config,
        params,
        extra,
        step: int,
        *,
        image_size: tuple[int, int] | None = None,
        dtype: str | None = None,
        history: Sequence[dict] = (),
        data_identity=None,
        projection: Projection | None = None,
    ):
        self.config = config
        self.history = list(history)
        self.data_identity = data_identity
        self.kind = kind_of(config)
        kind = METHODS.get(self.kind)
        label = config.label if self.kind == ENCODER else self.kind
        self.label = kind.label if kind else label
        self.name = with_article(self.label)
        self.step = step
        self._trained, self._dtype = (params, extra), dtype
        config, self.resized = as_used(config, image_size, dtype), ""
        self.image_size = tuple(config.image_size)
        if self.image_size != tuple(self.config.image_size):
            params, extra, self.resized = resized(params, extra, self.config, self.image_size)
        self.params, self.extra = params, extra
        self.pixels = pixel_format.of(self.config)
        if self.kind == CLASSIFIER:
            method = supervised.finetune(
                config,
                Plan(1, 1),
                num_outputs=len(params["head"]["bias"]),
                several=config.task == "multilabel",
            )
            self.knn_feature = {"mean": "patches", "cls": "cls"}[config.model.pool]
        else:
            method = method_of(config, step)
            self.knn_feature = config.evaluate.knn_feature
        self.projection = projection
        if projection is not None:
            encoder = encoders.projected(method.encoder, projection.matrix)
            method = method._replace(encoder=encoder)
        self.method = method
        self.num_hidden = method.num_hidden
        shown = ("attention", "features", "hardness")
        hidden = {name for name in shown if getattr(method, name) is None}
        self.gives = (kind.gives if kind else frozenset()) - hidden
        self.mask_recipes = kind.mask_recipes if kind else {}
        self.has_masks = method.masks is not None
        self.can_reconstruct = method.reconstruct is not None
        self.has_attention = method.attention is not None
        self.can_restore = method.restore is not None
        self.encoder = self._encode = None
        self.has_class_token = bool(method.encoder and method.encoder.module.prefix)
        if method.encoder is not None:
            self.encoder, encode = method.encoder_of(params, extra), method.encoder.encode
            normalize = self.pixels.normalize
            self._encode = jax.jit(lambda p, x: encoders.as_dict(encode(p, normalize(x))))
        self._features = jax.jit(method.features) if method.features else None
        self._reconstruct = (
            jax.jit(method.reconstruct, static_argnames="borrow_statistics")
            if self.can_reconstruct
            else None
        )
        self._attention = jax.jit(method.attention) if self.has_attention else None
        self._restore = jax.jit(method.restore) if self.can_restore else None

    def at_size(self, image_size: tuple[int, int]) -> Run:
        """The same run for images of another size.

        Raises:
          InputError: see `Run`.
        """
        if image_size == self.image_size:
            return self
        return self._again(image_size=image_size)

    def projected(self, projection: Projection) -> Run:
        """The same run with a projection, see `Run`."""
        return self._again(projection=projection)

    def _again(self, **changes) -> Run:
        kept = {
            "image_size": self.image_size,
            "dtype": self._dtype,
            "history": self.history,
            "data_identity": self.data_identity,
            "projection": self.projection,
        }
        return Run(self.config, *self._trained, self.step, **kept | changes)

    def encode(self, images) -> dict[str, Any]:
        """{"cls": (B, D), "patches": (B, N, D), "patches_prenorm": (B, N, D)} of all patches."""
        self.check_encodes()
        return self._encode(self.encoder, checked_images(images, self.image_size, self.pixels))

    def check_encodes(self) -> None:
        """Raises InputError where the method trains no encoder."""
        self._able(self._encode, "trains no encoder")

    def features(self, images):
        """(B, N, D): what the selection kernel sees of each patch."""
        images = checked_images(images, self.image_size, self.pixels)
        return self._able(self._features, "shows no features")(self.params, self.extra, images)

    def masks(self, images, keys, masker=None, count: int | None = None):
        """(Mask of (B, ...) arrays, {metric: (B,)}) as at the end of the run and outside of
        training: by the run's masker and with as many visible patches as it shows at least, unless
        others are given."""
        images = checked_images(images, self.image_size, self.pixels)
        given = {"masker": masker, "count": count}
        given = {name: value for name, value in given.items() if value is not None}
        draw = functools.partial(self._able(self.method.masks, "masks nothing"), **given)
        return jax.jit(draw)(self.params, self.extra, images, keys)

    def reconstruct(self, images, order, borrow_statistics: bool = False):
        """(B, H, W, 3) float32 in [0, 1]: visible patches as they are, masked ones predicted, and
        those that `order` lacks, which are thrown away, black.

        A model trained with `loss.norm_pix` predicts each patch without its brightness and
        contrast. Those of hidden patches are estimated from the visible ones, see
        `patches.from_neighbours`, so that the pixels of hidden patches change nothing.

        Args:
          images: as for `encode`.
          order: (B, N) int32, visible patches first, as many as the run's masks show; or fewer
            than N columns, without the patches that a mask throws away (`Mask.kept`).
          borrow_statistics: take the true mean and deviation of each hidden patch instead, which
            no model could know. Without `loss.norm_pix` nothing is borrowed.

        Raises:
          InputError: images as `encode` refuses them, or an order of another shape or type.
        """
        reconstruct = self._able(self._reconstruct, "reconstructs nothing")
        images, order = checked_images(images, self.image_size, self.pixels), jnp.asarray(order)
        rows, columns = patches.grid_shape(self.image_size, self.config.model.patch_size)
        wanted = (len(images), rows * columns)
        fewest = wanted[1] - self.num_hidden[1] + 1
        fits = order.ndim == 2 and len(order) == wanted[0] and fewest <= order.shape[1] <= wanted[1]
        if not fits or not jnp.issubdtype(order.dtype, jnp.integer):
            raise InputError(
                f"order is {order.dtype} {order.shape}; it is int32 {wanted}, the patches of each "
                "image with the visible ones first; those that a mask throws away may be left out"
            )
        return reconstruct(
            self.params, self.extra, images, order, borrow_statistics=bool(borrow_statistics)
        )

    def corrupted(self, images: np.ndarray, seed: int = 0) -> np.ndarray:
        """(R, H, W, 3) float32 in [0, 1]: what the method trains the encoder on in place of images
        (R, H, W, 3) uint8. Overlay mixes each with the next, the last with the first."""
        corrupt = self._able(self.method.corrupted, "corrupts nothing")
        return np.asarray(corrupt(checked_images(images, self.image_size, self.pixels), seed))

    def restored(self, corrupted, order):
        """(B, H, W, 3) float32 in [0, 1]: what the model makes of corrupted images, as for
        `encode`; order int32 as for `reconstruct`, with all patches where the method masks
        nothing."""
        restore = self._able(self._restore, "restores nothing")
        corrupted = checked_images(corrupted, self.image_size, self.pixels)
        return restore(self.params, self.extra, corrupted, jnp.asarray(order))

    def attention(self, images):
        """(B, heads, N): how much the class token attends to each patch in the last block."""
        images = checked_images(images, self.image_size, self.pixels)
        attention = self._able(self._attention, "has no attention to show")
        return attention(self.params, self.extra, images)

    def _able(self, function, otherwise: str):
        """The function, which a method that cannot do it lacks."""
        if function is None:
            what = "an encoder alone" if self.kind == ENCODER else f"a run of {self.kind}"
            raise InputError(f"this is {what}, which {otherwise}; load another")
        return function

    def example_images(self, num: int) -> np.ndarray:
        """Validation images of the run's own data (training images where there are none).

        Returns:
          (1 to `num`, H, W, 3) uint8, spread evenly over the split.

        Raises:
          InputError: the data is not known or no longer there, or cannot be read.
        """
        if not self.config.data.source:
            raise InputError("it does not know what it was trained on, as one that was imported")
        train_source, val_source = open_data(self.config)
        source = val_source or train_source
        # Where none of the first choice can be read, more are tried.
        for count in (min(num, len(source)), min(_TRIED, len(source))):
            indices = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
            (batch,) = loader.eval_batches(
                source, image_size=self.image_size, batch_size=count, indices=indices
            )
            if batch["valid"].any():
                return batch["image"][batch["valid"]][:num]
        raise InputError(
            f"none of {count} images of config.data.source={self.config.data.source} can be read; "
            "the lines above name them and say why"
        )


def load_run(
    workdir: str | Path,
    *,
    step: int | None = None,
    image_size: tuple[int, int] | None = None,
    dtype: str | None = None,
    projection: str | Path | None = None,
) -> Run:
    """Loads the newest checkpoint of a run, or that of a step.

    Args:
      workdir: what train.py wrote, the `eval_finetune/seed-N` of a fine-tuning, or what
        `dppmask_jax.weights` imported; or a file of an encoder alone, or "zoo:NAME", one that comes
        with the package, see `encoder_files`.
      image_size, dtype: see `Run`.
      projection: the file of one, such as soap.safetensors of task soap.

    Raises:
      InputError: there is no checkpoint in `workdir`, or one of something else; the projection
        belongs to another encoder; or see `Run`.
    """
    if step is None:
        meta, state, step = encoder_files.newest(workdir)
    else:
        meta, state, step = checkpoint.read(workdir, step)
    config = workdir_files.from_json(meta.get("config", {}))
    if kind_of(config) is None:
        raise InputError(
            f"the checkpoint in {workdir} is neither a pre-training run nor a fine-tuning; name a "
            "workdir that train wrote, or the seed-N folder of a fine-tuning"
        )
    run = Run(
        config,
        state["params"],
        state.get("extra", {}),
        step,
        image_size=image_size,
        dtype=dtype,
        history=meta.get("history", ()),
        data_identity=meta.get("data_identity"),
    )
    if projection is None:
        return run
    run.check_encodes()
    return run.projected(projections.read(projection, run, whose=str(workdir)))


def open_data(config):
    """(training source, validation source or None) of a config's data, of `data.classes` only, with
    the masks or part maps that its masker takes from elsewhere.

    Raises:
      InputError: a missing, empty or unprepared source, classes that it lacks, or masks or part
        maps that do not fit it.
    """
    data = config.data
    names = class_list(data.classes) if data.classes else ()
    splits = opening.of_data(data)
    if names:
        where = f"config.data.classes={data.classes}"
        splits = (split and only_classes(split, names, where) for split in splits)
    return image_parts.with_parts(config, *proposed.with_masks(config, *splits))


class Encoder:
    """A trained encoder. Call it with images.

    Attributes:
      image_size: (height, width) it takes.
      grid: (rows, columns) of patches.
      width: number of channels D of its outputs.
      pixels: of the images that it takes, see `pixel_format.Pixels`.
    """

    def __init__(self, run: Run):
        self._run = run
        self.image_size = run.image_size
        self.grid = run.method.encoder.grid
        self.width = run.method.encoder.width
        self.pixels = run.pixels

    def __call__(self, images) -> dict[str, Any]:
        """
        Args:
          images: (B, H, W, C) uint8, or float from 0 to 1, of `image_size`. C is 3 unless the run
            has data.channels; where it has data.range, too, whole numbers of any type are as its
            files have them.

        Returns:
          {"cls": (B, D), "patches": (B, N, D)} float32, after the final layer norm, all patches
          visible; patches row by row. Of an encoder without class token "cls" is the mean patch
          token. With a projection "patches" are projected, and "cls" is not.

        Raises:
          InputError: another shape or type, or floats outside [0, 1].
        """
        out = self._run.encode(images)
        return {"cls": out["cls"], "patches": out["patches"]}


def load_encoder(
    workdir: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    dtype: str | None = None,
    projection: str | Path | None = None,
) -> Encoder:
    """The encoder of a run's newest checkpoint.

    Args:
      workdir: as for `load_run`.
      image_size: (height, width) of the images to come, multiples of the patches; None is the
        run's. Positions are resized for it, see `Run`.
      dtype: of matrix products, "float32" or "bfloat16"; None is the run's. Parameters and outputs
        are float32.
      projection: the soap.safetensors that task soap wrote for this encoder; "patches" are then
        projected.

    Raises:
      InputError: there is no checkpoint in `workdir`, one without an encoder, another size or
        dtype, or a projection of another encoder, layer or width.
    """
    run = load_run(workdir, image_size=image_size, dtype=dtype, projection=projection)
    run.check_encodes()
    return Encoder(run)
