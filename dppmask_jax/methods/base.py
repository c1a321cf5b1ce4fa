"""What a training method is, and the state that training carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dppmask_jax.fields import Field
from dppmask_jax.masking import Mask, Masker
from dppmask_jax.models.base import Encoder
from dppmask_jax.optim import Optimizer


class Plan(NamedTuple):
    """The length and the peak of a run, from its config and the size of its data set. A method that
    is built to be evaluated, not trained, needs the first two alone."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int = 0
    evaluate_every: int = 0
    """Steps between measures; 0: there is one at the end alone."""
    peak_lr: float = 0.0


class Turn(NamedTuple):
    """One loss and the optimiser that follows its gradient."""

    loss: Callable[..., tuple[Any, tuple[dict[str, Any], Any]]]
    """(params, extra, batch, key, step) -> (loss, (metrics, aux)); `key` is the step's key."""

    optimizer: Optimizer

    trains: frozenset[str] | None = None
    """The top-level names of the parameters that it updates; None: all."""

    name: str = ""
    """Empty for the first turn. Another's stands in the log, in "loss_NAME", "grad_norm_NAME" and
    "lr_NAME"."""

    logits_bytes: int | None = None
    """Of a loss, metrics and aux that are means over the images: what the attention logits of a
    block take of an image. A TPU works on as many images at a time as `chunks.size_for` says. None:
    on all."""


class Method(NamedTuple):
    """A record of pure functions; `step.make_step` trains any of them. What a method cannot do is
    None, and nobody asks it for that.

    Shapes: B examples; `batch` holds what `example` made, each array with a leading B, "label"
    int32 (B,), "index" int32 (B,), the position of each example in the stream, "row" int32 (B,),
    the number of its image in the source, and "bad" bool (B,), whether that image stands in for an
    unreadable one.
    """

    example: Callable[..., dict[str, Any]] | None
    """(encoded image, numpy Generator) -> the uint8 arrays of one training example; on the host.
    With `extras`, a third argument holds them by their names, see `crops.single_view`. None where
    there is no training, see `frozen`."""

    init: Callable[[Any], tuple[Any, Any]]
    """key -> (params, extra); `extra` is what training updates without gradients."""

    turns: tuple[Turn, ...]
    """What a training step does, one after the other: each turn sees the parameters that the one
    before left. `aux` is a dict, and the turns' are joined into one."""

    after_step: Callable[..., Any]
    """(params, extra, aux, step) -> extra, with the parameters after the optimiser's step."""

    before_step: Callable[..., dict[str, Any]] = lambda batch, key: batch
    """(batch, key) -> batch, with more arrays of a leading B: what images of a step have of each
    other. It sees all B images of this device before they are cut into micro-batches, and those of
    other devices through `parallel`; `key` is the step's."""

    extras: tuple[str, ...] = ()
    """The names of what it needs of each image beside the label, such as "mask", see
    `Source.extras`; `example` puts it into the batch. Maps are mirrored with the image: on the host
    by `crops.multi_crop`, or in the step by `single_view.views_of` and others that call
    `augment.flip`."""

    schedules: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
    """name -> function of the step: what depends on the length of the run, beside the schedules of
    the optimisers."""

    report: Callable[..., dict[str, Any]] = lambda extra, aux, step: {}
    """(extra, aux, step) -> metrics, from what `after_step` returned; the same on all devices."""

    describe: tuple[tuple[str, str], ...] = ()
    """(name, text): lines that are printed when a run starts."""

    loss_of_views: bool = False
    """Whether the validation loss takes the views that `example` makes, as methods of several views
    do; else it takes "image", the evaluation crop."""

    watch: Callable[[], Callable[[int, dict[str, float]], str]] = lambda: lambda step, values: ""
    """() -> (step, values) -> a warning in one line, "" where nothing looks wrong. The function is
    called with each logged step, and may remember the steps before."""

    logits: Callable[..., Any] | None = None
    """(params, extra, images) -> (B, C) float32: the head's output for whole images."""

    # For methods that train an encoder.

    encoder: Encoder | None = None
    """The encoder."""

    encoder_of: Callable[..., Any] | None = None
    """(params, extra) -> the parameters of `encoder`."""

    with_positions: Callable[..., tuple[Any, Any]] = lambda params, extra: (params, extra)
    """(params, extra) -> the same with the tables of fixed positions among the parameters, so that
    they can be resized; see `vit_module.given_or_fixed`."""

    with_encoder: Callable[..., tuple[Any, Any]] | None = None
    """(params, extra, encoder) -> (params, extra) that start from another run's encoder."""

    # For methods of pre-training.

    masker: Masker | None = None
    """The masker that draws its masks."""

    masks: Callable[..., tuple[Mask, dict[str, Any]]] | None = None
    """(params, extra, images, keys, masker=its own, count=its own) -> (Mask of (B, ...) arrays,
    {metric: (B,)}), as at the end of the run and outside of training; `count` is the number of
    visible patches, an int. For figures and reconstructions."""

    features: Callable[..., Any] | None = None
    """(params, extra, images) -> (B, N, D): what the selection kernel sees."""

    num_hidden: tuple[int, int] | None = None
    """The fewest and the most patches that a masked view hides: masked ones and thrown ones."""

    view_clusters: Callable[..., dict[str, Any]] | None = None
    """(params, extra, batch, key) -> {"teacher": (B,), "student": (B,)} int32: the prototype that
    the teacher gives to the first view of each example, and the student to the second."""

    attention: Callable[..., Any] | None = None
    """(params, extra, images) -> (B, heads, N): how much the class token of the encoder that masks
    are drawn by attends to each patch in its last block."""

    hardness: Callable[..., Any] | None = None
    """(params, extra, images) -> (B, N): how hard each patch is to predict, as maskers see it."""

    reconstruct: Callable[..., Any] | None = None
    """(params, extra, images, order (B, M), borrow_statistics=False) -> (B, H, W, 3) float32 in
    [0, 1]; order has the visible patches, then the masked ones, and lacks those thrown away.
    Unless it borrows (static), hidden pixels do not enter; see `run.Run.reconstruct`."""

    soft_masks: Callable[..., Any] | None = None
    """(params, extra, images) -> (B, masks, H, W) float32 that add up to 1 at each pixel: those
    that a trained network occludes an image with, one at a time."""

    # For methods that undo a corruption.

    corrupted: Callable[..., Any] | None = None
    """(images (R, H, W, 3) uint8, seed) -> (R, H, W, 3) float32 in [0, 1]: what the encoder gets
    instead of them, before any patch is hidden; on the host."""

    restore: Callable[..., Any] | None = None
    """(params, extra, corrupted images, order) -> (B, H, W, 3) float32 in [0, 1]: what is made of
    them where the first patches of order (B, N) int32 are visible; without `masks` all are."""


class MethodKind(NamedTuple):
    """A method that a config can name."""

    build: Callable[[Any, Plan], Method]
    """(checked config, plan) -> the method."""

    label: str
    """Its name in messages and tables."""

    fields: Mapping[str, Field] = MappingProxyType({})
    """The fields that it reads beside those of all methods."""

    check: Callable[[Any], None] = lambda config: None
    """config -> None; raises InputError where fields do not fit each other."""

    gives: frozenset[str] = frozenset()
    """Names of what it shows maskers, see `masking.Masker.needs`."""

    shown_by: Mapping[str, str] = MappingProxyType({})
    """{a name in `gives`: the optional part of `Encoder` that it comes from}. Features that are
    pixels come from none."""

    recipes: tuple[str, ...] = ()
    """Recipes that train it, by their names."""

    masks: bool = True
    """Whether it draws masks: `config.mask` then has the strategy and the fields of `MASKERS`."""

    encoder: tuple[str, ...] | None = ()
    """The optional parts of `Encoder` that it needs, such as "blocks".
    `config.model` has the fields of `ENCODERS`; None: it trains none."""

    targets: bool = False
    """Whether it predicts one of `TARGETS`: `config.loss` then names it and has their fields."""

    loss_fields: tuple[str, ...] = ()
    """Fields, or how their names begin, that decide what its loss measures, beside those of the
    loss, the masks and the images, which do so in all methods: runs that differ in them have losses
    that say nothing of each other, see `runs.comparable`."""

    mask_recipes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """{strategy of masks: {field of config.mask: value}}, where strategies need values of their
    own. Config files set them, see `config.use_masks`."""


class TrainState(NamedTuple):
    """Everything that training changes; a plain pytree. `opt_state` has one entry a turn.

    `step` counts optimiser steps, skipped ones included; `bad_steps` counts the skipped steps
    since the last good one; `bad_images` counts, over all processes, the unreadable images that
    others took the place of.
    """

    step: Any
    params: Any
    opt_state: Any
    extra: Any
    bad_steps: Any
    bad_images: Any
