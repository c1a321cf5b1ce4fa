"""A study: maskers that are compared under the same methods, data and seeds, from its config file.

A run is one masker, one method and one seed. Runs of one seed start from the same parameters, and
see the same images in the same order, cropped alike and with the same noise, whatever hides their
patches: all of these are functions of (config, seed, step) that no masker enters.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import config_dict

from dppmask_jax import config_dicts, config_table, masking
from dppmask_jax.config import METHODS, use_masks
from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field, Rule, flatten, is_text, several, shown, whole
from dppmask_jax.runs import workdir
from dppmask_jax.sweeps import points
from dppmask_jax.sweeps.grid import Point
from dppmask_jax.training import resuming

_NAME = Rule(
    lambda value: is_text(value) and value.isidentifier(), "a word of letters, digits and _"
)
# What a study has beside the groups that `defaults` makes.
FIELDS = {
    "name": Field("", _NAME, "of the study, as files and tables have it"),
    "title": Field("", TEXT, "what is asked, in a few words"),
    "about": Field("", TEXT, "what to know to read the numbers"),
    "base": Field("random", TEXT, "the masker that the others are compared with"),
    "seeds": Field(
        (0, 1, 2),
        several(whole(0), "different whole numbers such as (0, 1, 2)", different=True),
        "of the runs; the more, the narrower the intervals",
    ),
    "source": Field("", TEXT, "data.source of all methods; '' leaves theirs"),
    "objects": Field(
        "",
        TEXT,
        "a source with foreground masks, for the evaluations in `of_objects`; '' leaves these out",
    ),
    "parts": Field("", TEXT, "mask.parts of maskers by parts; '' leaves these out"),
    "of_objects": Field(
        (), Rule(lambda value: isinstance(value, tuple), "a tuple of names"), "evaluations"
    ),
}
_SHARE = ("ratio", "ratio_var", "prob")  # fields of config.mask: how much is hidden
GROUPS = ("methods", "maskers", "evaluations")
# Where images and files are: the same ones in another place are the same. Files of parts are told
# from one another by the names of folders.
PLACES = (*sorted(resuming.PLACES - {"data.classes", "data.val_fraction"}), "mask.parts")

_NO_NUMBERS = ("carried out", "spaced")  # why fields are free that change no result, see `Field`


class Planned(NamedTuple):
    """One run: `point` has its folder's name and its config."""

    method: str
    masker: str
    seed: int
    point: Point


class Study(NamedTuple):
    """A study that was checked.

    Attributes:
      base: the masker that the others are compared with.
      labels: {masker: what it is, in words}, the base first.
      methods: {name: what it is called}.
      evaluations: {name: config}.
      records: {name of an evaluation: name of its records, see `evaluating.records.name_of`}.
      runs: seed by seed, so that what is finished early can be compared.
      left_out: why something of the study's file is not in it.
      definition: what makes its results those of this study, as JSON.
    """

    name: str
    title: str
    about: str
    seeds: tuple[int, ...]
    base: str
    labels: Mapping[str, str]
    methods: Mapping[str, str]
    evaluations: Mapping[str, Any]
    records: Mapping[str, str]
    runs: tuple[Planned, ...]
    left_out: tuple[str, ...]
    definition: Mapping[str, Any]


def defaults(name: str) -> config_dict.ConfigDict:
    """A study's config without methods, maskers and evaluations.

    Its groups: `methods`, {name: a config such as configs/mae.py makes}; `maskers`, {name: {field
    of config.mask: value}}; `evaluations`, {name: a config such as configs/eval.py makes}.
    """
    study = config_dicts.built(FIELDS)
    study.name = name
    for group in GROUPS:
        study[group] = config_dict.ConfigDict()
    return study


def read(config) -> Study:
    """A study from its config.

    Raises:
      InputError: a field, a masker, a method or an evaluation is wrong.
    """
    _check(config)
    left_out: list[str] = []
    maskers = _maskers(config, left_out)
    evaluations = _evaluations(config, left_out)
    words = {f"study.evaluations.{name}": of_one for name, of_one in evaluations.items()}
    records = dict(zip(evaluations, points.check_evaluations(words), strict=True))
    runs, labels = [], {}
    for seed in config.seeds:
        for method, of_method in config.methods.items():
            for masker, settings in maskers.items():
                where = f"study.methods.{method} with study.maskers.{masker}"
                trained = _trained(config, of_method, settings, seed, where)
                labels.setdefault(masker, _label(trained.mask))
                runs.append(_planned(method, masker, seed, trained))
    _check_differ(runs)
    definition = {
        "name": config.name,
        "methods": {name: _of_any_seed(of_one) for name, of_one in config.methods.items()},
        "maskers": {name: dict(settings) for name, settings in maskers.items()},
        "evaluations": {name: kept(of_one) for name, of_one in evaluations.items()},
    }
    return Study(
        config.name,
        config.title,
        config.about,
        tuple(config.seeds),
        config.base,
        labels,
        {name: _method_label(name, of_one) for name, of_one in config.methods.items()},
        evaluations,
        records,
        tuple(runs),
        tuple(left_out),
        json.loads(json.dumps(definition)),
    )


def _check(config) -> None:
    if not hasattr(config, "items") or not {*FIELDS, *GROUPS} <= {*config}:
        raise InputError(
            "--study is no study: its get_config returns something else; --study=cpu is one"
        )
    values = {name: value for name, value in config.items() if name not in GROUPS}
    for name, value in values.items():
        if name not in FIELDS:
            raise InputError(f"unknown field study.{name}; it has {', '.join((*FIELDS, *GROUPS))}")
        if not FIELDS[name].rule.holds(value):
            allowed = FIELDS[name].rule.allowed
            raise InputError(f"study.{name}={shown(value)} is not allowed: {allowed}")
    for group in GROUPS:
        if not config[group]:
            raise InputError(f"study.{group} is empty; name at least one")
        for name, of_one in config[group].items():
            if not _NAME.holds(name):
                raise InputError(f"study.{group} has {name!r}; a name is {_NAME.allowed}")
            if not hasattr(of_one, "items"):
                raise InputError(
                    f"study.{group}.{name}={shown(of_one)} is not allowed: it takes fields"
                )
    if config.base not in config.maskers:
        raise InputError(
            f"study.base={config.base} is none of study.maskers: {', '.join(config.maskers)}"
        )
    for name in config.of_objects:
        if name not in config.evaluations:
            raise InputError(
                f"study.of_objects names {name}, which is none of study.evaluations: "
                f"{', '.join(config.evaluations)}"
            )


def _maskers(config, left_out: list[str]) -> dict[str, dict[str, Any]]:
    """{masker: what its runs change of config.mask}, the base first, then as `MASKERS` has them."""
    found = {}
    order = {name: number for number, name in enumerate(masking.MASKERS)}

    def place(name):
        return name != config.base, order.get(config.maskers[name].get("strategy"), -1)

    for name in sorted(config.maskers, key=place):
        settings = dict(config.maskers[name])
        strategy = settings.get("strategy")
        if strategy not in masking.MASKERS:
            raise InputError(
                f"study.maskers.{name}.strategy={shown(strategy)} is not known: "
                f"{' | '.join(masking.MASKERS)}"
            )
        if strategy == "parts" and settings.get("parts", "source") == "source":
            if not config.parts:
                left_out.append(f"masker {name}: study.parts names no file of parts")
                continue
            settings["parts"] = config.parts
        found[name] = settings
    return found


def _evaluations(config, left_out: list[str]) -> dict[str, Any]:
    found = {}
    for name, of_one in config.evaluations.items():
        of_one = copy.deepcopy(of_one)
        if name in config.of_objects:
            if not config.objects:
                left_out.append(f"evaluation {name}: study.objects names no source")
                continue
            with of_one.unlocked():
                of_one.data.source = config.objects
        found[name] = of_one
    return found


def _trained(config, of_method, settings: Mapping[str, Any], seed: int, where: str):
    """The config that a run is trained with."""
    trained = copy.deepcopy(of_method)
    with points.Naming(where), trained.unlocked():
        if config.source:
            trained.data.source = config.source
        trained.seed = seed
        if "mask" not in trained:
            raise InputError("this method draws no masks; leave it out")
        share = {name: trained.mask[name] for name in _SHARE if name in trained.mask}
        use_masks(trained, settings["strategy"])
        trained.mask.update(share)  # the same one is hidden by all
        for name, value in settings.items():
            if name not in trained.mask:
                known = ", ".join(trained.mask)
                raise InputError(f"there is no config.mask.{name}; known: {known}")
            with trained.mask.ignore_type():
                trained.mask[name] = value
    trained.lock()
    points.check_config(trained, where)
    return trained


def _label(mask) -> str:
    label = masking.masker_of(mask).label
    return f"{label} of positions" if mask.get("features") == "positions" else label


def _planned(method: str, masker: str, seed: int, trained) -> Planned:
    """Its folder's name is that of the config and of its file of parts, so that studies share
    runs."""
    told = json.dumps(kept(trained), sort_keys=True).encode()
    if trained.mask.strategy == "parts" and (file := Path(trained.mask.parts)).is_file():
        told += file.read_bytes()
    digest = hashlib.sha256(told).hexdigest()[:8]
    values = {"method": method, "masker": masker, "seed": seed}
    name = f"{trained.method}-{trained.mask.strategy}-{seed}-{digest}"
    return Planned(method, masker, seed, Point(name, values, trained))


def _check_differ(runs: Sequence[Planned]) -> None:
    first: dict[str, Planned] = {}
    for run in runs:
        other = first.setdefault(run.point.name, run)
        if other is not run:
            raise InputError(
                f"study.methods.{run.method} with study.maskers.{run.masker} would be the run of "
                f"study.methods.{other.method} with study.maskers.{other.masker}; leave one out"
            )


def kept(config) -> dict[str, Any]:
    """What a config says of the numbers that come out, as JSON: {field: value}. Left out are
    places, how the work is carried out and when it is measured, and what is at its default: a field
    that comes later does then what was done without it. An evaluation's task is always said."""
    found = {"task": config.task} if "task" in config else {}
    known = config_table.fields_of(workdir.to_json(config))
    for name, value in flatten(workdir.to_json(config)).items():
        if name in known:
            field = known[name]
            default = json.loads(json.dumps(field.default))
            if field.free in _NO_NUMBERS or name in PLACES or value == default:
                continue
        found[name] = value  # one that is not known is gone since, and what it did as well
    return found


def _of_any_seed(method) -> dict[str, Any]:
    return {name: value for name, value in kept(method).items() if name != "seed"}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """How the kept definition of a study differs from a new one where both have it; maskers,
    methods and evaluations that one of them lacks are no difference."""
    found = []
    for group in ("methods", "maskers", "evaluations"):
        for name in old[group]:
            if name in new[group]:
                found += [
                    f"{group}.{name}.{field}: {shown(before)} -> {shown(after)}"
                    for field, before, after in _differences(old[group][name], new[group][name])
                ]
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]):
    for field in dict.fromkeys([*old, *new]):
        if field != "parts" and old.get(field) != new.get(field):
            yield field, old.get(field), new.get(field)


def _method_label(name: str, config) -> str:
    """What a method is called: its label, and the study's name for it where that says more."""
    label = METHODS[config.method].label
    return label if name == config.method else f"{label} ({name})"
