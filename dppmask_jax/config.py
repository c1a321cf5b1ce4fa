"""The config of a pre-training run: its fields are collected from the files that read them.

Collected when asked, never at import: a config file may add to `MASKERS` and the like before it
builds its config.
"""

from __future__ import annotations

from ml_collections import config_dict

from dppmask_jax import config_dicts, methods, pixel_format, trackers
from dppmask_jax.data import loader
from dppmask_jax.data.images import views
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError
from dppmask_jax.evals import probe
from dppmask_jax.fields import (
    TEXT,
    Field,
    check_fields,
    check_lengths,
    flatten,
    one_of,
    shown,
    whole,
)
from dppmask_jax.masking import own
from dppmask_jax.masking.kinds import MASKERS
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.methods.image_features import WITHOUT_ENCODER
from dppmask_jax.models import encoders
from dppmask_jax.models.encoders import ENCODERS
from dppmask_jax.patches import grid_shape
from dppmask_jax.targets import TARGETS
from dppmask_jax.training import build, fit, saves


def fields_of(method: str) -> dict[str, Field]:
    """The fields of a method's config by their full names, in the order in which they are shown."""
    return {
        "method": Field(method, one_of(method), "what is trained", fixed=True),
        "seed": Field(0, whole(0), "of all random draws"),
        "init_from": Field("", TEXT, "another run's workdir, to start from its encoder"),
        **build.FIELDS,
        **fit.FIELDS,
        **opening.FIELDS,
        **loader.FIELDS,
        **methods.fields_of(method),
        **(own.fields() if METHODS[method].masks else {}),
        **probe.FIELDS,
        "evaluate.figure_images": Field(
            6, whole(0, 64), "images in the figures at the end; 0 draws none", free="carried out"
        ),
        **saves.FIELDS,
        **trackers.fields(),
    }


def defaults(method: str) -> config_dict.ConfigDict:
    """A method's config with every field at its default."""
    return config_dicts.built(fields_of(method))


def shorten(config, epochs: float) -> None:
    """Sets the epochs of a config; its other fields that count some then take a tenth of them at
    most."""
    config_dicts.shorten(config, epochs, fields_of(config.method))


def use_defaults(config, method: str) -> None:
    """Sets the fields of a method that the config's own is made of to their defaults in it."""
    fields = methods.fields_of(method)
    config.update_from_flattened_dict({name: field.default for name, field in fields.items()})


def use_masks(config, strategy: str, method: str = "") -> None:
    """Sets the strategy of masks, and the fields that the method, or another that its own is made
    of, has values for with it."""
    config.mask.strategy = strategy
    recipes = METHODS[method or config.method].mask_recipes
    for name, value in recipes.get(strategy, {}).items():
        config.mask[name] = value


def fields_for(config) -> dict[str, Field]:
    """`fields_of` the method of a config.

    Raises:
      InputError: it is no config, or one of another kind, or its method is unknown.
    """
    if not hasattr(config, "items"):
        raise InputError(f"the config is {shown(config)}; get_config must return a ConfigDict")
    if "task" in config:
        recipes = (recipe for kind in METHODS.values() for recipe in kind.recipes)
        raise InputError(
            f"config.task={config['task']} is for eval, which also goes on training a "
            f"classifier: dppmask eval --config=eval:task={config['task']} --checkpoint=RUN; "
            f"train takes {' and '.join(recipes)}"
        )
    method = config.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"config.method={shown(method)} is not allowed: {' | '.join(METHODS)}")
    return fields_of(method)


def check(config) -> None:
    """Raises InputError, in one line, for the first field that is wrong or does not fit."""
    fields = fields_for(config)
    values = flatten(config)
    if isinstance(source := values.get("data.source"), str) and not source:
        raise InputError(
            "config.data.source is empty; say where the images are: "
            "--config.data.source=folder:PATH (or shapes, or tfds:NAME)"
        )
    check_fields(values, fields)
    if config.batch_size % config.optim.accum_steps:
        raise InputError(
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.optim.accum_steps={config.optim.accum_steps}"
        )
    probe.check_fields(config)
    pixel_format.check(config)
    pixel_format.check_colours(config, views.COLOURS)
    trackers.check(config)
    kind = METHODS[config.method]
    check_lengths(
        config.epochs,
        {name: values[name] for name, field in fields.items() if field.in_epochs},
        scaled_by=f"{kind.recipes[0]}:epochs=N" if kind.recipes else "",
    )
    if kind.encoder is not None:
        encoders.check(config)
    kind.check(config)
    if kind.encoder is not None:
        _check_encoder(config)
    if kind.targets:
        TARGETS[config.loss.target].check(config)
    if kind.masks:
        MASKERS[config.mask.strategy].check(config.mask)
        _check_needs(config)
        _check_counts(config)


# {field of `Seen`: what a method lacks that cannot fill it, in words}.
_NOTHING = {
    "features": "no features",
    "attention": "no teacher",
    "hardness": "no head that predicts losses",
    "parts": "no part maps",
    "proposed": "no masks that come with the images",
}


# {optional part of an encoder: what a method that needs it does, in words}.
_DOES = {
    "attended": "looks at the attention of the class token",
    "blocks": "encodes visible patches alone",
    "hides": "puts a token in the place of hidden patches",
    "trace": "looks into the blocks",
}


def _check_encoder(config) -> None:
    """Raises InputError where the encoder lacks what the method cannot do without."""
    method, encoder = METHODS[config.method], encoders.build(config)
    missing = [part for part in method.encoder if getattr(encoder, part) is None]
    if missing:
        raise InputError(
            f"{method.label} {' and '.join(_DOES[part] for part in missing)}, which "
            f"config.model.encoder={config.model.encoder!r} cannot: use {next(iter(ENCODERS))!r}"
        )


def _check_needs(config) -> None:
    """Raises InputError where the masker needs what the method or its encoder cannot show."""
    method, strategy = METHODS[config.method], config.mask.strategy
    hidden = _not_shown(config)

    def lacks(name, gives) -> list[str]:
        return sorted(MASKERS[name].build(config.mask).needs - gives)

    if missing := lacks(strategy, method.gives):
        words = f"{method.label} has {' and '.join(_NOTHING[need] for need in missing)}"
    elif missing := lacks(strategy, method.gives - hidden):
        nothing = " and ".join(f"no {need}" for need in missing)
        words = f"config.model.encoder={config.model.encoder!r} shows {nothing}"
    if missing:
        others = [name for name in MASKERS if not lacks(name, method.gives - hidden)]
        raise InputError(
            f"{words}: config.mask.strategy={strategy!r} needs "
            f"{'one' if len(missing) == 1 else 'them'}; use {' | '.join(others)}"
        )


def _check_counts(config) -> None:
    """Raises InputError where the masker cannot hide as many patches as the method wants."""
    check_counts = MASKERS[config.mask.strategy].check_counts
    if check_counts:
        grid = grid_shape(tuple(config.image_size), config.model.patch_size)
        method = METHODS[config.method].build(config, Plan(1, 1))
        if method.num_hidden:
            check_counts(config.mask, grid, *method.num_hidden)


def _not_shown(config) -> frozenset[str]:
    """The names in `MethodKind.gives` that this encoder lacks the part for."""
    kind = METHODS[config.method]
    if kind.encoder is None:
        return frozenset()
    encoder = encoders.build(config)
    return frozenset(
        what
        for what, part in kind.shown_by.items()
        if getattr(encoder, part) is None
        and not (what == "features" and config.mask.features in WITHOUT_ENCODER)
    )
