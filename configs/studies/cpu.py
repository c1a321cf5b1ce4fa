"""Which masks pre-train better? Small encoders, many maskers, several seeds, on two CPU cores.

dppmask compare --study=cpu --workdir=runs/compare --jobs=2 \\
    --study.source=folder:IMAGES --study.objects=csv:PETS/labels.csv --study.parts=parts.npy

MAE of 4 blocks and width 96 on photographs of 64 px, in patches of 8, 16 of 64 of them visible.
IMAGES is a folder of classes with `train` and `val`; PETS a table of images with foreground masks;
parts.npy comes from dppmask part-maps. Without the last two, what needs them is left
out.
"""

from dppmask_jax.comparing import study as studies
from dppmask_jax.recipes import eval as evaluations
from dppmask_jax.recipes import mae

MASKERS = {
    "random": {"strategy": "random"},
    "dpp90": {"strategy": "dpp", "tau": 0.9},
    "dpp80": {"strategy": "dpp", "tau": 0.8},
    "dpp60": {"strategy": "dpp", "tau": 0.6},
    # On this grid the kernel of positions is so narrow that at 0.9 and 0.8 nothing is picked
    # greedily, and masks are the random ones. At 0.05 as many are picked as by features at 0.6.
    "positions05": {"strategy": "dpp", "tau": 0.05, "features": "positions"},
    "exact": {"strategy": "exact"},
    "block": {"strategy": "block"},
    "grid": {"strategy": "grid"},
    "green": {"strategy": "noise", "colour": "green"},
    "blue": {"strategy": "noise", "colour": "blue"},
    "parts": {"strategy": "parts"},
    "amt": {"strategy": "amt"},
    "hard": {"strategy": "hard"},
}


def get_config(argument: str = ""):
    del argument
    study = studies.defaults("cpu")
    study.title = "Which masks pre-train better?"
    study.about = (
        "MAE, 4 blocks of width 96, images of 64 px in patches of 8, a quarter of them visible; "
        "equally many images seen."
    )
    study.seeds = (0, 1, 2, 3, 4)
    study.methods.mae = method()
    study.maskers = MASKERS
    study.evaluations.knn = evaluations.get_config("task=knn")
    study.evaluations.ridge = evaluations.get_config("task=linear,dataset=small")
    study.evaluations.ridge.solver = "ridge"
    study.evaluations.layers = evaluations.get_config("task=layers")
    study.evaluations.backgrounds = evaluations.get_config("task=backgrounds")
    study.evaluations.hidden = evaluations.get_config("task=hidden")
    study.of_objects = ("backgrounds", "hidden")
    return study


def method():
    """The recipe of all CPU-sized studies."""
    config = mae.get_config("dataset=small,size=Pi,epochs=12")
    config.image_size = (64, 64)
    config.batch_size = 64
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.decoder_width = 64
    config.model.decoder_depth = 2
    config.model.decoder_heads = 4
    config.optim.base_lr = 4e-3
    config.checkpoint.keep = 1
    config.checkpoint.every = 600
    config.evaluate.every_epochs = 0.0
    config.evaluate.figure_images = 0
    config.log_every = 100
    return config
