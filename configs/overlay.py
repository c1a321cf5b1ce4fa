"""Train a ViT autoencoder to undo paired image overlay, or overlay and masks.

python train.py --config=configs/overlay.py:dataset=small,alpha=0.3,size=S,epochs=200 \\
    --workdir=runs/mine --config.data.source=folder:/path/to/images

Arguments after the colon:

  dataset  shapes       generated images, 64 px, CPU-sized model. Minutes on two cores.
           small        about 10,000 photographs of 128 px; ViT-S/16 unless `size` says otherwise.
  mask     none | random | dpp | block: what is hidden after the overlay. All other masks that MAE
           takes too: --config.mask.strategy=NAME with any but none.
  alpha    0.3 | 0 | 0.1 | 0.2 | 0.4: share of the other image
  size     Pi, Mu (CPU), Ti, S, B, L, H
  epochs   a whole number; the warm-up then takes a tenth of them at most
"""

from ml_collections import config_dict

from configs import common
from dppmask_jax import config as pretraining

ARGUMENTS = {
    "dataset": ("shapes", "small"),
    "mask": ("none", "random", "dpp", "block"),
    "alpha": ("0.3", "0", "0.1", "0.2", "0.4"),
    "size": ("", "Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "epochs": (0,),
}
SIZE_OF = {"shapes": "Pi", "small": "S"}
EPOCHS_OF = {"shapes": 12, "small": 200}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset = chosen["dataset"]

    config = pretraining.defaults("overlay")
    config.epochs = float(EPOCHS_OF[dataset])
    config.model.size = chosen["size"] or SIZE_OF[dataset]
    if config.model.size == "H":
        config.model.patch_size = 14
    config.data.alpha = float(chosen["alpha"])
    if chosen["mask"] != "none":
        config.mask.strategy = chosen["mask"]
        config.mask.ratio = 0.75

    RECIPES[dataset](config)
    if chosen["epochs"]:
        pretraining.shorten(config, chosen["epochs"])
    return config


def _shapes(config):
    config.image_size = (64, 64)
    config.batch_size = 64
    config.log_every = 31
    config.model.patch_size = 8
    config.model.decoder_width = 64
    config.model.decoder_depth = 2
    config.model.decoder_heads = 4
    config.model.dtype = "float32"
    config.optim.base_lr = 4e-3
    config.optim.warmup_epochs = 1.0
    config.data.crop_scale = (0.5, 1.0)
    config.checkpoint.every = 186
    config.evaluate.every_epochs = 3.0
    config.evaluate.loss_images = 512


def _small(config):
    config.data.source = ""
    config.image_size = (128, 128)
    config.model.patch_size = 16
    config.model.decoder_width = 192
    config.model.decoder_depth = 4
    config.model.decoder_heads = 6
    config.optim.base_lr = 5e-4
    config.optim.warmup_epochs = 10.0
    config.checkpoint.every = 500
    config.evaluate.every_epochs = 5.0


RECIPES = {"shapes": _shapes, "small": _small}
