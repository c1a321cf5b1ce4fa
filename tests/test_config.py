import io

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import config_dict

from configs import ibot, mae
from dppmask_jax import config as config_checks
from dppmask_jax.errors import InputError
from dppmask_jax.models.sizes import SIZES
from dppmask_jax.training import build
from dppmask_jax.training.step import init_state


def changed(module=mae, **fields):
    config = module.get_config()
    with config.ignore_type():
        for name, value in fields.items():
            *path, leaf = name.split("__")
            node = config
            for part in path:
                node = node[part]
            node[leaf] = value
    return config


PRESETS = [
    (module, argument)
    for module in (mae, ibot)
    for argument in [
        *(f"dataset={dataset}" for dataset in module.ARGUMENTS["dataset"]),
        *(f"dataset=shapes,mask={mask}" for mask in module.ARGUMENTS["mask"][1:]),
        "dataset=imagenet1k,size=H",
    ]
]
NAMES = [f"{module.__name__}:{argument}" for module, argument in PRESETS]
PRESET = pytest.mark.parametrize("module,argument", PRESETS, ids=NAMES)


def encoded_image():
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@PRESET
def test_every_preset_passes_the_checks(module, argument):
    config = module.get_config(argument)
    config.data.source = config.data.source or "folder:somewhere"
    config_checks.check(config)


@pytest.mark.parametrize(
    "module,argument",
    [
        pytest.param(*preset, id=name, marks=[] if "shapes" in name else [pytest.mark.slow])
        for preset, name in zip(PRESETS, NAMES, strict=True)
    ],
)
def test_every_preset_can_be_built(module, argument):
    """Shapes only: the model, the loss and its gradient, the optimiser's state.

    All have two blocks, for tracing takes the time.
    """
    config = module.get_config(argument)
    config.model.depth = 2
    plan = build.plan_from(config, 100_000)
    method = build.method_from(config, plan)
    state = jax.eval_shape(lambda key: init_state(method, key), jax.random.key(0))
    example = method.example(encoded_image(), np.random.default_rng(0))
    example |= {"index": np.int32(0), "row": np.int32(0)}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), example)
    (loss, _), grads = jax.eval_shape(
        jax.value_and_grad(method.turns[0].loss, has_aux=True),
        state.params, state.extra, batch, jax.random.key(0), 0,
    )  # fmt: skip
    assert loss.shape == () and loss.dtype == np.float32
    same = jax.tree.map(lambda p, g: p.shape == g.shape and p.dtype == g.dtype, state.params, grads)
    assert all(jax.tree.leaves(same))
    expected = SIZES[config.model.size].width
    assert state.params["encoder"]["cls_token"].shape == (1, 1, expected)


@pytest.mark.parametrize("module", [mae, ibot])
@pytest.mark.parametrize("dataset", mae.ARGUMENTS["dataset"])
def test_any_size_and_a_single_epoch_make_a_plan(module, dataset):
    for size in mae.ARGUMENTS["size"][1:]:
        config = module.get_config(f"dataset={dataset},size={size},epochs=1")
        config.data.source = "folder:somewhere"
        config_checks.check(config)
    for num_images in (1, 64, 10_000):
        plan = build.plan_from(config, num_images)
        method = build.method_from(config, plan)
        rate = method.turns[0].optimizer.learning_rate
        assert 0 <= plan.warmup_steps < plan.total_steps
        assert float(rate(plan.warmup_steps)) == pytest.approx(plan.peak_lr)


def test_presets_are_the_papers():
    for dataset in ("imagenet100", "imagenet1k"):
        config = mae.get_config(f"dataset={dataset}")
        assert (config.model.size, config.model.patch_size, config.image_size) == (
            "B",
            16,
            (224, 224),
        )
        assert (config.epochs, config.mask.ratio, config.batch_size) == (400, 0.75, 4096)
        assert (config.optim.base_lr, config.optim.b2, config.optim.weight_decay) == (
            1.5e-4,
            0.95,
            0.05,
        )
        assert config.optim.warmup_epochs == 40 and config.data.crop_scale == (0.2, 1.0)


def test_arguments_choose():
    config = mae.get_config("mask=random,size=Ti,epochs=7")
    assert (config.mask.strategy, config.model.size, config.epochs) == ("random", "Ti", 7.0)


@pytest.mark.parametrize(
    "argument,words",
    [
        ("maks=dpp", "did you mean mask"),
        ("mask=dppp", "dpp | random | block"),
        ("epochs=0", "epochs=0"),
        ("epochs=ten", "whole number"),
        ("mask", "mask"),
        ("zzz=1", "known: dataset"),
    ],
)
def test_wrong_arguments_are_named(argument, words):
    with pytest.raises(ValueError, match=words.replace("|", r"\|")) as error:
        mae.get_config(argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"mask__tau": 1.5}, "config.mask.tau=1.5"),
        ({"mask__tau": -0.1}, "a number from 0 to 1"),
        ({"mask__tau": float("nan")}, "config.mask.tau=nan"),
        ({"mask__tau_end": 2.0}, "config.mask.tau_end"),
        ({"mask__ratio": 1.0}, "config.mask.ratio=1.0"),
        ({"mask__ratio": 0.0}, "config.mask.ratio=0.0"),
        ({"mask__ratio": 0.999}, "config.mask.ratio=0.999"),
        ({"mask__ratio": 1e-18}, "masks none"),
        ({"mask__strategy": "dppp"}, " | random | block"),
        ({"image_size": (65, 64)}, "65x64 is not a multiple of the patch size 8"),
        ({"image_size": (64,)}, "config.image_size"),
        ({"image_size": 64}, "config.image_size"),
        ({"batch_size": 0}, "config.batch_size=0"),
        ({"batch_size": 12.5}, "config.batch_size=12.5"),
        ({"log_every": True}, "config.log_every=True"),
        ({"model__size": "XL"}, "Pi | Mu | Ti | S | B | L | H"),
        ({"model__decoder_heads": 5}, "config.model.decoder_heads=5"),
        ({"model__dtype": "float16"}, "float32 | bfloat16"),
        ({"optim__warmup_epochs": 1e6}, "too long for config.epochs"),
        ({"data__source": ""}, "--config.data.source=folder:PATH"),
        ({"data__source": "imagenet"}, "shapes | folder:PATH | archive:FILE"),
        ({"data__crop_scale": (0.9, 0.2)}, "config.data.crop_scale"),
        ({"data__crop_scale": (0.2, 1.2)}, "config.data.crop_scale"),
        ({"data__max_bad_frac": "some"}, "config.data.max_bad_frac='some'"),
    ],
)
def test_wrong_values_are_one_line_that_names_the_field(fields, words):
    with pytest.raises(InputError) as error:
        config_checks.check(changed(**fields))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"mask__ratio": (0.0, 0.7), "mask__ratio_var": (0.0,)}, "as many variations as ratios"),
        ({"mask__ratio": (0.3,), "mask__ratio_var": (0.4,)}, "within 0 to below 1"),
        ({"mask__ratio": (0.9,), "mask__ratio_var": (0.1,)}, "within 0 to below 1"),
        ({"mask__ratio": (0.0,), "mask__ratio_var": (0.0,)}, "masks none of the 64 patches"),
        ({"mask__ratio": 0.7}, "config.mask.ratio=0.7"),
        ({"mask__ratio": ()}, "config.mask.ratio=()"),
        ({"mask__features": "embedding"}, "tokens | head | pixels"),
        ({"mask__attention": "middle"}, "high | low | hint"),
        ({"data__local_views": 1, "data__local_size": (33, 32)}, "config.data.local_size"),
        ({"data__jitter": (0.4, 0.4, 0.2, 0.6)}, "config.data.jitter"),
        ({"model__prototypes": 1}, "config.model.prototypes=1"),
        ({"loss__class_temp__start": 0.0}, "config.loss.class_temp.start"),
        ({"teacher__ema_decay": 1.5}, "config.teacher.ema_decay"),
    ],
)
def test_wrong_values_of_ibot_are_one_line_that_names_the_field(fields, words):
    with pytest.raises(InputError) as error:
        config_checks.check(changed(ibot, **fields))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_masks_that_need_what_a_method_cannot_show_are_refused():
    words = r"iBOT has no head that predicts losses: config\.mask\.strategy='hard' needs one; use"
    with pytest.raises(InputError, match=words):
        config_checks.check(changed(ibot, mask__strategy="hard"))
    for recipe in (mae, ibot):
        config_checks.check(recipe.get_config("mask=attention"))


def test_presets_of_ibot_are_the_published_recipe():
    config = ibot.get_config("dataset=imagenet100,mask=block")
    assert (config.model.size, config.model.patch_size, config.epochs) == ("S", 16, 100)
    assert (config.data.local_views, config.data.local_size) == (10, (96, 96))
    assert (config.mask.ratio, config.mask.ratio_var) == ((0.0, 0.3), (0.0, 0.2))
    assert (config.model.prototypes, config.model.norm_last_layer) == (8192, False)
    assert (config.optim.base_lr, config.optim.weight_decay_end) == (5e-4, 0.4)
    attention = ibot.get_config("mask=attention").mask
    assert (attention.ratio, attention.ratio_var, attention.prob) == ((0.3,), (0.2,), 0.5)
    dpp = ibot.get_config().mask
    assert (dpp.ratio, dpp.ratio_var, dpp.prob) == ((0.0, 0.7), (0.0, 0.05), 1.0)


def test_unknown_and_missing_fields_are_named():
    config = config_dict.ConfigDict(mae.get_config().to_dict())
    config.mask.tua = 0.5
    with pytest.raises(InputError, match=r"config\.mask\.tua; did you mean config\.mask\.tau"):
        config_checks.check(config)
    config = config_dict.ConfigDict(mae.get_config().to_dict())
    del config.optim["b2"]
    with pytest.raises(InputError, match=r"config\.optim\.b2 is missing"):
        config_checks.check(config)


@pytest.mark.parametrize("module", [mae, ibot])
def test_every_field_of_a_config_has_a_rule_and_every_rule_a_field(module):
    config = module.get_config()
    assert set(config_checks.flatten(config)) == set(config_checks.fields_of(config.method))
