"""Wrong values in every field of every config, and both ends of what is allowed."""

import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_dict

from configs import eval as evaluations
from configs import ibot, mae
from dppmask_jax import config as pretraining
from dppmask_jax import fields
from dppmask_jax.errors import InputError
from dppmask_jax.tasks import checks as evaluation_settings
from dppmask_jax.training import build


@dataclasses.dataclass(frozen=True, repr=False)
class Kind:
    """A kind of config: its values as plain dicts, its check and its rules."""

    def __repr__(self):
        return self.name

    name: str
    values: dict
    check: object
    rules: dict

    @functools.cached_property
    def fields(self):
        return sorted(fields.flatten(self.values))

    @functools.cached_property
    def groups(self):
        return sorted({f.rpartition(".")[0] for f in self.fields if "." in f})

    def changed(self, changes):
        """A config with some fields, or whole groups, replaced."""
        values = copy.deepcopy(self.values)
        for field, value in changes.items():
            *path, leaf = field.split(".")
            functools.reduce(lambda node, part: node[part], path, values)[leaf] = value
        return config_dict.ConfigDict(values)


def rules_of(known):
    return {name: field.rule for name, field in known.items()}


def kinds():
    for module in (mae, ibot):
        values = module.get_config("dataset=shapes").to_dict()
        known = pretraining.fields_of(values["method"])
        yield Kind(values["method"], values, pretraining.check, rules_of(known))
    for task in evaluations.ARGUMENTS["task"]:
        for train in ("finetune", "linear") if task == "multilabel" else ("finetune",):
            values = evaluations.get_config(f"task={task},dataset=shapes,train={train}").to_dict()
            known = evaluation_settings.fields_of(task, train)
            yield Kind(f"{task} {train}", values, evaluation_settings.check, rules_of(known))


KINDS = tuple(kinds())
EACH = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
# These say which fields there are: with another of them some other field is the wrong one.
CHOOSING = ("method", "task", "train")


def refusal(kind, changes):
    """What the check says of a config, "" if it passes; anything but an InputError is a failure."""
    try:
        kind.check(kind.changed(changes))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, error
        return str(error)
    return ""


@EACH
def test_the_presets_pass(kind):
    assert refusal(kind, {}) == ""


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31 - 1, 2**31, 2**63, -(2**63), 10**400, -(10**5000)]),
    st.floats(),
    st.sampled_from([1e-300, 5e-324, 1e38, 1e39, 1.7e308, -0.0, math.nextafter(1, 0)]),
    st.text(),
    st.sampled_from(["folder:\0", "tfds:", "shapes:size=0", "a\nb", "\udc80.txt", "x" * 5000]),
    st.binary(max_size=4),
    st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=3)), max_size=5),
    st.lists(st.one_of(st.floats(0, 1), st.integers(-1, 99)), max_size=5).map(tuple),
    st.sampled_from([object(), np.zeros((9, 9)), np.float32(0.5), 1j, {1, 2}, {}, {"a": 1}, [[]]]),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.data())
def test_any_value_of_any_field_passes_or_is_refused_by_name(data):
    kind = data.draw(st.sampled_from(KINDS))
    field = data.draw(st.sampled_from(kind.fields))
    words = refusal(kind, {field: data.draw(anything)})
    if words and field not in CHOOSING:
        assert f"config.{field}" in words


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_two_wrong_fields_are_an_input_error(data):
    kind = data.draw(st.sampled_from(KINDS))
    fields = data.draw(st.lists(st.sampled_from(kind.fields), min_size=2, max_size=4, unique=True))
    refusal(kind, {field: data.draw(anything) for field in fields})


@EACH
def test_every_field_refuses_what_is_of_no_type(kind):
    for field in kind.fields:
        for value in (object(), b"x", float("nan"), 10**400, {1}, np.zeros(2), ("a",) * 9, 1j):
            words = refusal(kind, {field: value})
            assert f"config.{field}" in words, (field, value)
            if field not in CHOOSING:
                assert kind.rules[field].allowed in words or " | " in words, (field, words)


@EACH
def test_groups_and_values_do_not_replace_each_other(kind):
    for group in kind.groups:
        inner = [f for f in kind.fields if f.startswith(f"{group}.")]
        for value in ("random", None, 3, (), object()):
            words = refusal(kind, {group: value})
            assert f"config.{group}=" in words
            assert all(name.removeprefix(f"{group}.") in words for name in inner)
        assert f"config.{group}." in refusal(kind, {group: {}})
    for field in kind.fields:
        words = refusal(kind, {field: {"inner": 1}})
        assert f"config.{field}" in words, words


@pytest.mark.parametrize("value", [None, 5, "mae", [], object()])
def test_something_else_than_a_config_is_refused(value):
    for check in (pretraining.check, evaluation_settings.check):
        with pytest.raises(InputError, match="get_config must return a ConfigDict"):
            check(value)


# Of each field values at both ends of what is allowed, and values just outside.
TINY, LARGEST, INT32 = 1.2e-38, 3.4e38, 2**31 - 1
BELOW_1 = 1 - 2**-24
_WHOLE_FROM_0 = ([0, INT32], [-1, INT32 + 1, 0.0, True])
_WHOLE_FROM_1 = ([1, INT32], [0, INT32 + 1, 1.0, True])
_FLAG = ([True, False], [0, 1, "True", None])
_POSITIVE = ([TINY, LARGEST, 1], [0, 0.0, 1e-39, 1e39, math.inf, -TINY])
_FROM_0 = ([0, 0.0, LARGEST], [-TINY, 1e39, math.inf])
_SHARE = ([0, 0.0, 1, 1.0], [-TINY, 1.0000001])
_BELOW_1 = ([0, 0.0, BELOW_1], [-TINY, 1, math.nextafter(1, 0)])
_AREA = ([(TINY, TINY), (TINY, 1.0), [1.0, 1.0]], [(0, 1), (0.5, 1.0000001), (1.0, 0.9), 0.5])
_SIDES = ([(1, 1), [16384, 1]], [(0, 1), (16385, 1), (1.0, 1.0), (1,), 1])
_TEXT = (["", "a b", "é"], ["a\nb", "\0", 1, None])
_SEEDS = ([(0,), [INT32, 3]], [(), 0, (-1,), (1, 1), (0.0,)])
_CHOICE = {
    "evaluate.knn_feature": ("patches", "cls"),
    "model.encoder": ("vit", "resnet"),
    "optim.kind": ("adamw", "sgd"),
    "model.resnet": ("18", "34", "50", "101"),
    "model.size": ("Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "mask.threshold_on": ("d2", "d"),
    "mask.kernel": ("gaussian", "cosine"),
    "mask.colour": ("green", "blue", "red", "purple"),
    "mask.normalize": ("l2", "center", "standardize"),
    "mask.attention": ("high", "low", "hint"),
    "resolution": ("model", "native"),
    "model.pool": ("mean", "cls"),
    "loss.kind": ("softmax", "bce", "asl"),
    "loss.distance": ("squared", "absolute"),
    "solver": ("lars", "sgd", "ridge"),
    "train": ("finetune", "linear"),
    "classifier": ("ridge", "finetune", "linear", "own"),
    "mapping": ("same", "imagenet100", "imagenet1k", "wnid"),
    "mode": ("soft", "auto", "hard", "scores"),
    "layers": ("one", "all"),
}
BOUNDS = {
    "method": (["mae", "ibot"], ["", None, 1]),
    "task": (["knn"], [None, [], 1]),
    "seed": _WHOLE_FROM_0,
    "seeds": _SEEDS,
    "image_size": _SIDES,
    "batch_size": ([1, 2**20], [0, 2**20 + 1, 64.0]),
    "epochs": _POSITIVE,
    "log_every": _WHOLE_FROM_1,
    "init_from": _TEXT,
    "mask.path": _TEXT,
    "mask.cell": _WHOLE_FROM_1,
    "mask.parts": _TEXT,
    "mask.num_parts": ([1, 256], [0, 257, 2.0]),
    "mask.amt_cell": _WHOLE_FROM_1,
    "mask.thrown": ([0, BELOW_1], [1, -0.1]),
    "mask.guided_from": _SHARE,
    "mask.hard": _SHARE,
    "mask.hard_end": ([None, *_SHARE[0]], _SHARE[1]),
    "mask.rank_weight": _FROM_0,
    "mask.ema_decay": _SHARE,
    "mask.ema_decay_end": ([None, *_SHARE[0]], _SHARE[1]),
    "mask.refresh_epochs": ([None, *_POSITIVE[0]], _POSITIVE[1]),
    "memory_gb": _POSITIVE,
    "data.dir": _TEXT,
    "projection": _TEXT,
    "data.classes": (["", "imagenet100", "a/b.txt"], ["imagenet", "a\n.txt", None]),
    "data.val_fraction": _BELOW_1,
    "data.crop_scale": _AREA,
    "data.local_scale": _AREA,
    "data.flip": _FLAG,
    "data.workers": ([0, 256], [-1, 257, 1.0]),
    "data.max_bad_frac": _SHARE,
    "data.local_views": ([0, 64], [-1, 65, 2.0]),
    "data.local_size": _SIDES,
    "data.jitter": ([(0, 0, 0, 0), [1, 1, 1, 0.5]], [(0, 0, 0), (0, 0, 0, 0.51), (1.1, 0, 0, 0)]),
    "data.jitter_prob": _SHARE,
    "data.grey_prob": _SHARE,
    "data.blur_prob": ([(0, 0, 0), [1, 1, 1]], [(0, 0), (0, 0, 1.1), 0.5]),
    "data.blur_sigma": ([(TINY, 2.4), [2.4, 2.4]], [(0, 1), (2, 1), (1, 2.41), 1.0]),
    "data.solarize_prob": _SHARE,
    "data.randaugment": ([0, 10], [-1, 10.1]),
    "data.erase_prob": _SHARE,
    "data.whole": _FLAG,
    "data.mixup": ([0, 0.001, 1000], [-1, 1e-4, 1001]),
    "data.cutmix": ([0, 0.001, 1000], [-1, 1e-4, 1001]),
    "optim.base_lr": _POSITIVE,
    "optim.final_lr": _FROM_0,
    "optim.warmup_epochs": _FROM_0,
    "optim.weight_decay": _FROM_0,
    "optim.weight_decay_end": ([None, *_FROM_0[0]], _FROM_0[1]),
    "optim.b1": _BELOW_1,
    "optim.b2": _BELOW_1,
    "optim.epsilon": _POSITIVE,
    "optim.clip_norm": _FROM_0,
    "optim.clip_per_tensor": _FLAG,
    "optim.accum_steps": _WHOLE_FROM_1,
    "optim.max_bad_steps": _WHOLE_FROM_0,
    "parallel.mode": (["pmap", "shard_map"], ["jit", None]),
    "optim.freeze_last_layer_epochs": _FROM_0,
    "optim.layer_decay": ([TINY, 1], [0, 1.0000001]),
    "checkpoint.every": _WHOLE_FROM_1,
    "checkpoint.every_minutes": _FROM_0,
    "checkpoint.keep": _WHOLE_FROM_1,
    "checkpoint.max_failed_saves": _WHOLE_FROM_1,
    "data.range": (["auto", "0,1", "(-1.5, 4095)"], ["", "0", "1,1", "0,nan", "0,1,2", (0, 1), 0]),
    "evaluate.every_epochs": _FROM_0,
    "evaluate.knn_images": _WHOLE_FROM_0,
    "evaluate.knn_k": _WHOLE_FROM_1,
    "evaluate.knn_temperature": _POSITIVE,
    "evaluate.figure_images": ([0, 64], [-1, 65, 6.0]),
    "evaluate.loss_images": _WHOLE_FROM_0,
    "model.patch_size": ([1, INT32, (16, 8)], [0, 1.0, True, (0, 8), (8,), (8, 8, 8), (8, 4.0)]),
    "model.width": ([None, 4, 2**14], [0, 2**14 + 1, 64.0]),
    "model.depth": ([None, 1, 256], [0, 257]),
    "model.heads": ([None, 1, 2**14], [0, 2**14 + 1]),
    "model.mlp": ([None, 1, 2**16], [0, 2**16 + 1]),
    "model.resnet_width": ([1, 2**10], [0, 2**10 + 1, 64.0]),
    "model.drop_path": _BELOW_1,
    "scratch": _FLAG,
    "model.remat": _FLAG,
    "model.decoder_width": ([4, 2**14], [3, 2**14 + 1, 64.0]),
    "model.decoder_depth": ([1, 128], [0, 129]),
    "model.decoder_heads": ([1, 2**14], [0, 2**14 + 1]),
    "model.init_std": _POSITIVE,
    "model.head_hidden": ([1, 2**16], [0, 2**16 + 1]),
    "model.head_bottleneck": ([1, 2**16], [0, 2**16 + 1]),
    "model.prototypes": ([2, 2**20], [1, 2**20 + 1]),
    "model.shared_head": _FLAG,
    "model.norm_last_layer": _FLAG,
    "mask.tau": _SHARE,
    "mask.tau_end": ([None, *_SHARE[0]], _SHARE[1]),
    "mask.bandwidth": _POSITIVE,
    "mask.ratio_var": ([(0,), [BELOW_1, 0.0]], [(), 0.1, (1.0,), (-0.1,)]),
    "mask.prob": ([TINY, 1], [0, 1.0000001]),
    "mask.start_epoch": _FROM_0,
    "loss.norm_pix": _FLAG,
    "loss.hog_window": _FLAG,
    "loss.class_weight": _FROM_0,
    "loss.patch_weight": _FROM_0,
    "loss.student_temp": _POSITIVE,
    "loss.center_decay": _SHARE,
    "loss.smoothing": _BELOW_1,
    "loss.gamma_neg": _FROM_0,
    "loss.gamma_pos": _FROM_0,
    "loss.clip": _BELOW_1,
    "teacher.ema_decay": _SHARE,
    "temperature": _POSITIVE,
    "center": _FLAG,
    "k": ([(1,), [INT32]], [(), 20, (0,), (1.0,)]),
    "num_clusters": _WHOLE_FROM_0,
    "threshold": ([TINY, BELOW_1], [0, 1]),
    "ridge": ([(0,), [LARGEST]], [(), 1.0, (-1,)]),
    "root": _TEXT,
    "images": ([2, INT32], [1, INT32 + 1, 2.0, True]),
    "shown": ([0, 32], [-1, 33, 1.0, True]),
    "train_images": ([2, INT32], [1, INT32 + 1, 2.0]),
    "changed": (["", "shapes", "folder:x"], ["shape", "folder", None]),
    "noise.classifier": (["auto", "own", "ridge", "none"], ["", "finetune", None]),
    "noise.images": ([2, INT32], [1, INT32 + 1, 2.0]),
    "noise.frequencies": ([(TINY,), [3.14, 1]], [(), 1.0, (0.0,), (math.pi,), (1, 1)]),
    "noise.half_width": ([None, TINY, 3.14], [0, math.pi]),
    "noise.eps": _POSITIVE,
    "noise.seed": _WHOLE_FROM_0,
    "classes": ([2, 10], [1, 11, 2.0]),
    "tokens": _WHOLE_FROM_1,
    "depth": ([None, 0, INT32], [-1, 1.0, True]),
    "perplexity": _POSITIVE,
    "iterations": ([250, INT32], [249, 250.0]),
    "max_side": ([16, 4096], [15, 4097]),
    "bilateral": _FLAG,
    "mu": _POSITIVE,
    "gamma": _POSITIVE,
    "layer": ([None, 0, INT32], [-1, 1.0, True]),
    "against": _TEXT,
    "segments": (["", "2", "1000", "names.txt"], ["1", "1001", "names", 2, None]),
    "ignored": ([None, 0, 2**16 - 1], [-1, 2**16, 255.0]),
    "heads": ([("knn",), ("linear", "ridge", "knn")], [(), "knn", ("knn", "knn"), ("mlp",)]),
    "head_epochs": _WHOLE_FROM_1,
    "head_batch": _WHOLE_FROM_1,
    "query_heads": _WHOLE_FROM_1,
    "learning_rates": ([(TINY,), (1e-3, 1)], [(), 1e-3, (0.0,)]),
    "classifier_seed": _WHOLE_FROM_0,
    "num": ([1, 64], [0, 65]),
    "data.channels": ([None, 1, 1024], [0, 1025, 3.0]),
    "data.mean": ([None, (0.5,), (-1e6, 1e6)], [(), (1.1e6,), 0.5]),
    "data.std": ([None, (TINY,)], [(), (0.0,), 0.5]),
    "data.axis": ([0, 2], [-1, 3, 1.0]),
    "data.shown": ([None, (0,), (3, 2, 1)], [(), (-1,), 0]),
    "log.wandb": _TEXT,
    "log.mlflow": _TEXT,
    "log.tags": _TEXT,
    "draws": ([1, 1000], [0, 1001, 2.0]),
    "foreground": ([1, 255], [0, 256, 2.0]),
    "almost": ([0, 1], [-TINY, 1.1]),
    "tau": ([None, *_SHARE[0]], _SHARE[1]),
    "borrow_statistics": _FLAG,
    **{f"loss.{which}_temp.{end}": _POSITIVE for which in ("class", "patch")
       for end in ("start", "end")},
    **{f"loss.{which}_temp.warmup_epochs": _WHOLE_FROM_0 for which in ("class", "patch")},
    **{field: (list(names), ["", names[0] + "x", None, 0]) for field, names in _CHOICE.items()},
}  # fmt: skip
PRETRAINING_BOUNDS = BOUNDS | {
    "data.source": (["shapes", "folder:x", "tfds:a", "csv:f"], ["", "shape", "folder", None]),
    "model.dtype": (["float32", "bfloat16"], ["", "float16", None]),
}
OF_KIND = {
    "mae": PRETRAINING_BOUNDS | {
        "mask.ratio": ([TINY, BELOW_1], [0, 1, (0.5,)]),
        "mask.strategy": (["dpp", "random", "block", "attention"], ["", None]),
        "mask.features": (["embedding", "pixels", "positions"], ["tokens", None]),
        "loss.target": (["pixels", "hog"], ["", "HOG", None]),
    },
    "ibot": PRETRAINING_BOUNDS | {
        "mask.ratio": ([(0,), [BELOW_1, 0.0]], [(), 0.5, (1.0,), (-0.1,)]),
        "mask.strategy": (["dpp", "random", "block", "attention"], ["", None]),
        "mask.features": (["tokens", "head", "pixels", "positions"], ["embedding", None]),
    },
}  # fmt: skip
EVALUATION_BOUNDS = BOUNDS | {
    "image_size": ([None, *BOUNDS["image_size"][0]], BOUNDS["image_size"][1]),
    "data.source": (["", "shapes", "coco:x"], ["shape", "folder", None]),
    "model.dtype": (["", "float32", "bfloat16"], ["float16", None]),
}


OF_KIND["finetune finetune"] = EVALUATION_BOUNDS | {"epochs": _FROM_0}
OF_KIND["reconstruct finetune"] = EVALUATION_BOUNDS | {"images": _TEXT}
OF_KIND["soap finetune"] = EVALUATION_BOUNDS | {"images": ([10, INT32], [9, INT32 + 1, 20.0])}
for _name in ("layers", "shift"):
    OF_KIND[f"{_name} finetune"] = EVALUATION_BOUNDS | {"k": _WHOLE_FROM_1}
OF_KIND["segmentation finetune"] = EVALUATION_BOUNDS | {
    "k": _WHOLE_FROM_1,
    "tokens": ([2, INT32], [1, 2.0]),
    "learning_rate": _POSITIVE,
    "weight_decay": _FROM_0,
}
OF_KIND["attentive finetune"] = EVALUATION_BOUNDS | {"k": _WHOLE_FROM_1, "weight_decay": _FROM_0}
OF_KIND["inside finetune"] = EVALUATION_BOUNDS | {
    "tasks": ([("soap",), ("tsne", "soap")], [("soap", "soap"), ("knn",), ("inside",), 1])
}
OF_KIND["saliency finetune"] = EVALUATION_BOUNDS | {"threshold": ([-1, 1], [-1.01, 1.01])}


@EACH
def test_both_ends_of_every_field_are_where_they_are_said_to_be(kind):
    bounds = OF_KIND.get(kind.name, EVALUATION_BOUNDS)
    for field in kind.fields:
        allowed, refused = bounds[field]
        for value in allowed:
            assert field == "method" or kind.rules[field].holds(value), (field, value)
        for value in refused:
            words = refusal(kind, {field: value})
            assert f"config.{field}" in words, (field, value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mae", {"optim.warmup_epochs": 13.0}, "config.epochs=12"),
        ("mae", {"evaluate.knn_k": 21, "evaluate.knn_images": 20}, "config.evaluate.knn_images=20"),
        ("mae", {"optim.accum_steps": 3}, "config.batch_size=64 is not a multiple"),
        ("mae", {"model.decoder_width": 66}, "config.model.decoder_heads=4"),
        ("mae", {"model.patch_size": 7}, "config.image_size, config.model.patch_size"),
        ("mae", {"model.heads": 5}, "the width is a multiple of 4 and of the heads"),
        ("ibot", {"model.width": 50, "model.heads": 2}, "the width is a multiple of 4"),
        ("mae", {"image_size": (4096, 4096)}, "262144 patches are more than 16384"),
        ("mae", {"mask.ratio": 0.99}, "leaves no visible patch"),
        ("mae", {"loss.target": "hog", "model.patch_size": 4}, "4 is no multiple of 8"),
        ("ibot", {"mask.ratio_var": (0.0,)}, "as many variations as ratios"),
        ("ibot", {"mask.start_epoch": 12.0}, "too long for config.epochs=12"),
        ("ibot", {"optim.freeze_last_layer_epochs": 12.0}, "too long for config.epochs=12"),
        ("ibot", {"loss.class_weight": 0.0, "loss.patch_weight": 0.0}, "are both 0"),
        ("ibot", {"data.local_views": 2, "data.local_size": (30, 30)}, "config.data.local_size"),
        ("finetune finetune", {"loss.kind": "bce"}, "config.task=finetune: softmax"),
        (
            "finetune finetune",
            {"optim.warmup_epochs": 16.0},
            "too long for config.epochs=15",
        ),
        ("multilabel finetune", {"loss.smoothing": 0.1}, "for one label an image"),
        ("multilabel linear", {"loss.kind": "softmax"}, "bce | asl"),
        ("linear finetune", {"seeds": (1, 2, 1)}, "different whole numbers"),
    ],
)
def test_fields_that_contradict_each_other_are_named(name, changes, words):
    (kind,) = (kind for kind in KINDS if kind.name == name)
    assert words in refusal(kind, changes)


@pytest.mark.parametrize("epochs", [1e9, 3e38])
def test_more_steps_than_can_be_counted_are_refused(epochs):
    config = KINDS[0].changed({"epochs": epochs})
    pretraining.check(config)
    with pytest.raises(InputError, match=r"config\.epochs=.* steps in all"):
        build.plan_from(config, 10**6)
