"""Random and DPP masks on 10 classes of ImageNet, beside a public table; for one GPU or TPU.

dppmask compare --study=imagenette --workdir=runs/compare --results=docs/results

MAE and iBOT, ViT-S/16, 224 px, 200 epochs of 9,469 photographs in batches of 128, three seeds: 12
runs, as the benchmark of stable-pretraining has them (Imagenette, one A100; best k-NN and linear
probe of the run: MAE 72.1 % and 84.1 %, iBOT 43.3 % and 57.9 %). Its probes are trained beside the
encoder; here the finished encoder is evaluated.

The images are those of `tfds:imagenette/full-size-v2`, or of a folder of classes with `train` and
`val`: --study.source=folder:IMAGENETTE.
"""

from dppmask_jax.comparing import study as studies
from dppmask_jax.recipes import eval as evaluations
from dppmask_jax.recipes import ibot, mae

MASKERS = {
    "random": {"strategy": "random"},
    "dpp90": {"strategy": "dpp", "tau": 0.9},
}


def get_config(argument: str = ""):
    if argument:
        raise ValueError(f"study imagenette takes no argument {argument!r}")
    study = studies.defaults("imagenette")
    study.title = "Random and DPP masks on Imagenette"
    study.about = (
        "ViT-S/16, images of 224 px, 200 epochs in batches of 128; the recipes follow the "
        "benchmark of stable-pretraining."
    )
    study.seeds = (0, 1, 2)
    study.maskers = MASKERS
    for name, recipe in (("mae", mae), ("ibot", ibot)):
        study.methods[name] = recipe.get_config("dataset=imagenette")
        study.methods[name].checkpoint.keep = 1
        study.methods[name].evaluate.every_epochs = 0.0
        study.methods[name].evaluate.figure_images = 0
    study.evaluations.knn = evaluations.get_config("task=knn")
    study.evaluations.linear = evaluations.get_config("task=linear,dataset=small")
    study.evaluations.ridge = evaluations.get_config("task=linear,dataset=small")
    study.evaluations.ridge.solver = "ridge"
    study.evaluations.layers = evaluations.get_config("task=layers")
    return study
