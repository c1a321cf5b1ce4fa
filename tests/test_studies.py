"""The studies of configs/studies/: what they train, without training it."""

import jax
import numpy as np
import pytest
from dppmask_jax.recipes.studies import imagenette, paper

from dppmask_jax import pretrain
from dppmask_jax.comparing import study as studies
from dppmask_jax.config import METHODS
from dppmask_jax.errors import InputError
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import metrics

RESULTS = [(result, method) for result, methods in paper.METHODS_OF.items() for method in methods]


def read(config, source="shapes"):
    config.source = source
    return studies.read(config)


def of_paper(result, method):
    return read(paper.get_config(f"result={result},method={method}"))


def names(study):
    return {planned.point.name for planned in study.runs}


def test_imagenette_has_the_recipe_of_the_public_table():
    study = read(imagenette.get_config())
    assert len(study.runs) == 2 * 2 * 3 and study.base == "random"
    assert list(study.evaluations) == ["knn", "layers", "linear", "ridge"]
    for planned in study.runs:
        config = planned.point.config
        assert (config.epochs, config.batch_size, tuple(config.image_size)) == (
            200,
            128,
            (224, 224),
        )
        assert config.optim.base_lr * 128 / 256 == 5e-4 and config.model.size == "S"
        assert config.seed == planned.seed and config.mask.strategy in ("random", "dpp")
        if planned.method == "mae":
            decoder = [config.model[f"decoder_{part}"] for part in ("width", "depth", "heads")]
            assert decoder == [384, 4, 6] and config.mask.ratio == 0.75
        else:
            assert config.data.local_views == 0 and config.mask.prob == 1.0
            # The share that is hidden is that of the method, not what a mask is usually drawn with.
            assert (config.mask.ratio, config.mask.ratio_var) == ((0.3,), (0.0,))
    with pytest.raises(ValueError, match="takes no argument 'x=1'"):
        imagenette.get_config("x=1")


@pytest.mark.parametrize("result, method", RESULTS)
def test_results_of_the_paper_are_whole_studies(result, method):
    study = of_paper(result, method)
    epochs = {"mae": 400, "ibot": 100}[method] if result != "table6" else 200
    parameters = {"mae": ("B", 4096), "ibot": ("S", 1024)}[method]
    for planned in study.runs:
        config = planned.point.config
        assert config.epochs == epochs and tuple(config.image_size) == (224, 224)
        assert (config.model.size, config.batch_size) == parameters
        classes = "" if result in ("table3", "table6") else "imagenet100"
        assert config.data.classes == classes
    assert study.base == ("random" if method == "mae" else "block")
    assert study.seeds == (0,)


def test_maskers_of_the_paper_hide_what_their_papers_hide():
    masks = {run.masker: run.point.config.mask for run in of_paper("table2", "ibot").runs}
    assert set(masks) == {"block", "attention", "dpp60", "dpp80", "dpp90"}
    assert masks["block"].ratio == (0.0, 0.3) and masks["block"].ratio_var == (0.0, 0.2)
    assert masks["attention"].ratio == (0.3,) and masks["attention"].prob == 0.5
    assert masks["dpp60"].ratio == (0.0, 0.7) and masks["dpp60"].tau == 0.6
    ratios = {
        (run.method, run.masker): run.point.config.mask.ratio
        for run in of_paper("figure4", "mae").runs
    }
    assert len(ratios) == 15
    assert all(float(method[-2:]) == 100 * ratio for (method, _), ratio in ratios.items())
    study = paper.get_config("result=table3")
    assert set(read(study).labels) == {"random", "dpp90", "amt"}, "no parts without their file"


def test_results_of_the_paper_share_their_runs():
    table1, table4, table5 = (of_paper(f"table{number}", "mae") for number in (1, 4, 5))
    assert names(table4) == names(table5) < names(table1)
    assert len(names(of_paper("figure4", "mae")) & names(table1)) == 2
    table2, of_ibot = of_paper("table2", "ibot"), of_paper("table4", "ibot")
    assert names(of_ibot) < names(table2)


@pytest.mark.parametrize(
    "argument, words",
    [
        ("result=table7", r"result=table7: it takes table1 \| "),
        ("result=table2,method=mae", "table2 of the paper is of ibot, not of mae"),
        ("table=2", "unknown config argument 'table=2'"),
    ],
)
def test_what_the_paper_has_not_is_refused(argument, words):
    with pytest.raises(ValueError, match=words):
        paper.get_config(argument)


def test_images_have_to_be_named():
    with pytest.raises(InputError, match=r"config\.data\.source is empty"):
        studies.read(paper.get_config("result=table1"))


def test_the_model_of_imagenette_has_as_many_parameters_as_the_sizes_say():
    config = next(
        run.point.config for run in read(imagenette.get_config()).runs if run.method == "mae"
    )
    shapes, _ = jax.eval_shape(METHODS["mae"].build(config, Plan(1, 1)).init, jax.random.key(0))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    blocks = 4 * (12 * 384**2 + 13 * 384)
    decoder = 384 * 384 + 384 + 384 + blocks + 2 * 384 + 384 * 768 + 768
    # timm's ViT-S/16 without a head has 21,665,664; 197 positions are no parameters here.
    assert found == 21_665_664 - 197 * 384 + decoder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mae", "ibot"])
def test_three_steps_of_imagenette_on_generated_images(method, tmp_path):
    config = imagenette.get_config()
    for recipe in (config.methods.mae, config.methods.ibot):
        recipe.batch_size, recipe.log_every, recipe.epochs = 4, 1, 1.0
        recipe.model.dtype = "float32"  # bfloat16 is slow on a CPU
        # A step of twelve blocks takes minutes to compile and to run.
        recipe.model.update(depth=1, width=48, heads=6)
        recipe.optim.warmup_epochs = 0.0
        recipe.data.val_fraction = 0.0
    config.methods.mae.model.update(decoder_depth=1, decoder_width=48, decoder_heads=6)
    config.methods.ibot.model.update(head_hidden=64, head_bottleneck=32, prototypes=64)
    config.methods.ibot.optim.freeze_last_layer_epochs = 0.0
    for temperature in ("class_temp", "patch_temp"):
        config.methods.ibot.loss[temperature].warmup_epochs = 0
    study = read(config, "shapes:size=224,train=12,val=4")
    chosen = [run for run in study.runs if run.method == method and run.seed == 0]
    for planned in chosen:
        pretrain.train(planned.point.config, tmp_path / planned.masker)
        logged = metrics.read_metrics(tmp_path / planned.masker / "metrics.jsonl")
        losses = [record["loss"] for record in logged if "loss" in record]
        assert len(losses) == 3 and np.isfinite(losses).all()
