"""Pre-train SimMIM, which predicts masked patches from one learned token, or MaskFeat.

dppmask train --config=simmim:dataset=small,size=S,epochs=200 \\
    --workdir=runs/mine --config.data.source=folder:/path/to/images

Arguments after the colon:

  dataset  shapes       generated images, 64 px, CPU-sized model. Minutes on two cores.
           small        about 10,000 photographs of 128 px; ViT-S/16 unless `size` says otherwise.
           imagenet1k   SimMIM's runs: ViT-B/16, 224 px, 800 epochs; MaskFeat's take 300.
  target   pixels       SimMIM: cells of 32 px are masked, absolute error of their pixels
           hog          MaskFeat: blocks of patches are masked, histograms of oriented gradients
  mask     cells | block | random | dpp, in place of those of the target
           attention  what an average of the encoder attends to most (AttMask)
           amt        the same, drawn; a quarter of the patches is neither seen nor predicted
           hard       more and more of those whose loss a linear layer predicts to be high (HPM)
  size     Pi, Mu (CPU), Ti, S, B, L, H
  epochs   a whole number; the warm-up then takes a tenth of them at most

Any mask of --config.mask.strategy will do. All patches but thrown ones are encoded, which is four
times the work of MAE's encoder. `--show_config` prints every field. imagenet1k reads
tfds:imagenet2012 unless told otherwise, small wants --config.data.source=folder:PATH. On a CPU add
--config.model.dtype=float32.

What to expect:

  shapes       two cores of a server: four minutes; validation loss 0.88 -> 0.63, k-NN accuracy
               19.7 % untrained -> 21.1 % trained (raw pixels 15.8 %, chance 11 %).
  small        not run here.
  imagenet1k   not run here. Papers, ViT-B fine-tuned: SimMIM 83.8 %.

Sources: SimMIM, arXiv 2111.09886 and code; MaskFeat, arXiv 2112.09133 and code, whose encoder here
has learned positions. The recipes of `shapes` and `small` are this project's own.
"""

from ml_collections import config_dict

from dppmask_jax import config as pretraining
from dppmask_jax.recipes import common

ARGUMENTS = {
    "dataset": ("shapes", "small", "imagenet1k"),
    "target": ("pixels", "hog"),
    "mask": ("", "cells", "block", "random", "dpp", "attention", "amt", "hard"),
    "size": ("", "Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "epochs": (0,),
}
SIZE_OF = {"shapes": "Pi", "small": "S", "imagenet1k": "B"}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset = chosen["dataset"]

    config = pretraining.defaults("simmim")
    config.model.size = chosen["size"] or SIZE_OF[dataset]
    if config.model.size == "H":
        config.model.patch_size = 14
    config.mask.strategy = "cells"
    config.evaluate.loss_images = 8192
    RECIPES[dataset](config)
    if chosen["target"] == "hog":
        _maskfeat(config, dataset)
    if chosen["mask"]:
        pretraining.use_masks(config, chosen["mask"])
    if chosen["mask"] == "amt":  # its authors' encoder, which can leave patches out
        config.model.position = "learned"
        config.model.relative = "none"
    if chosen["epochs"]:
        pretraining.shorten(config, chosen["epochs"])
    return config


def _maskfeat(config, dataset):
    config.loss.target = "hog"
    config.mask.strategy = "block"
    config.mask.ratio = 0.4
    config.model.position = "learned"
    config.model.relative = "none"
    config.model.layer_scale = 0.0
    config.model.qv_bias = False
    if dataset == "imagenet1k":
        config.epochs = 300.0
        config.mask.ratio = 0.3979  # 78 of 196 patches
        config.model.drop_path = 0.0
        config.data.crop_scale = (0.5, 1.0)
        config.optim.base_lr = 2e-4
        config.optim.final_lr = 0.0
        config.optim.warmup_epochs = 30.0
        config.optim.clip_norm = 0.02
        config.optim.drop_at = None


def _shapes(config):
    config.epochs = 12.0
    config.image_size = (64, 64)
    config.batch_size = 64
    config.log_every = 31
    config.mask.ratio = 0.625  # 10 of 16 cells
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.drop_path = 0.0
    config.optim.base_lr = 4e-3
    config.optim.warmup_epochs = 1.0
    config.checkpoint.every = 186
    config.evaluate.every_epochs = 3.0
    config.evaluate.loss_images = 512


def _small(config):
    config.data.source = ""
    config.epochs = 200.0
    config.image_size = (128, 128)
    config.mask.ratio = 0.625  # 10 of 16 cells
    config.optim.base_lr = 5e-4
    config.checkpoint.every = 500
    config.evaluate.every_epochs = 5.0
    config.evaluate.loss_images = 2048


def _imagenet1k(config):
    config.data.source = "tfds:imagenet2012"
    config.epochs = 800.0
    config.batch_size = 2048
    config.optim.final_lr = 4e-5  # a tenth of the peak, from epoch 700 on
    config.optim.drop_at = 0.875


RECIPES = {"shapes": _shapes, "small": _small, "imagenet1k": _imagenet1k}
