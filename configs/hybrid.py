"""Pre-train one encoder by masked modelling and contrastive learning together.

dppmask train --config=hybrid:dataset=small,mim=mae,mask=dpp,weight=0.2 \\
    --workdir=runs/mine --config.data.source=folder:/path/to/images

Arguments after the colon:

  dataset  shapes       generated images, 64 px, CPU-sized model. Minutes on two cores.
           small        about 10,000 photographs of 128 px; ViT-S/16 unless `size` says otherwise.
           imagenet100  ViT-B/16, 224 px, 400 epochs.
           imagenet1k   ViT-B/16, 224 px, 100 epochs.
  mim      mae | simmim: the masked loss, and the encoder
  weight   0.2 | 0 | 0.1 | 0.3 | 0.4 | 0.5 | 0.6 | 0.8 | 1: share of the contrastive loss; another
           by --config.hybrid.weight, one that moves by --config.hybrid.weight_end
  mask     dpp | random | block | cells | attention | amt | hard, as in mae and
           simmim, and with simmim cells where none is given
  size     Pi, Mu (CPU), Ti, S, B, L, H
  epochs   a whole number; the warm-up then takes a tenth of them at most

The masked view is the second of the two augmented ones; with --config.hybrid.view=separate it is a
crop of its own, as mae and simmim have it. --config.hybrid.encoder=moco trains MoCo v3's encoder,
with its optimiser, in place of that of `mim`. What runs at several weights are to be compared by:

dppmask sweep --config=hybrid:dataset=shapes,mask=dpp \\
    --grid="hybrid.weight=0,0.2,0.4,0.6,1" --workdir=runs/weights \\
    --eval=eval:task=linear --eval.solver=ridge --eval2=eval:task=knn \\
    --eval3=eval:task=attention --eval4=eval:task=frequencies

imagenet100 and small want --config.data.source=folder:PATH; imagenet1k reads tfds:imagenet2012
unless told otherwise. `--show_config` prints every field. On a CPU add
--config.model.dtype=float32.

What to expect:

  shapes       with mask=dpp, 10 minutes of CPU time: k-NN of the class token 58.0 %, of the mean
               patch token 26.1 % untrained -> 46.2 %, its ridge probe 62.7 % (chance 11 %;
               docs/cl_vs_mim.md, where the first of the two views was masked).
  small        not run here.
  imagenet100  not run here.
  imagenet1k   not run here. Paper, ViT-B, SimMIM and MoCo, linear probe and fine-tuned, read off
               its figure 12: 18.0 and 81.9 % (weight 0), 61.5 and 82.3 % (0.2), 58.0 and 81.35 %
               (1).

The recipes are this project's own: images, model and optimiser are those of `mim`, the augmented
views and the heads MoCo v3's. The paper does not say how long its hybrid was trained.
"""

from ml_collections import config_dict

from dppmask_jax import config as pretraining
from dppmask_jax.recipes import common, mae, moco, simmim

ARGUMENTS = {
    "dataset": ("shapes", "small", "imagenet100", "imagenet1k"),
    "mim": ("mae", "simmim"),
    "weight": ("0.2", "0", "0.1", "0.3", "0.4", "0.5", "0.6", "0.8", "1"),
    "mask": ("", "dpp", "random", "block", "cells", "attention", "amt", "hard"),
    "size": ("", "Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "epochs": (0,),
}
EPOCHS_OF = {"shapes": 12, "small": 200, "imagenet100": 400, "imagenet1k": 100}
MASK_OF = {"mae": "dpp", "simmim": "cells"}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset, mim = chosen["dataset"], chosen["mim"]

    config = pretraining.defaults("hybrid")
    config.hybrid.mim = mim
    config.hybrid.weight = float(chosen["weight"])
    of_views = config.data.crop_scale
    pretraining.use_defaults(config, mim)
    config.model.size = chosen["size"] or mae.SIZE_OF[dataset]
    if config.model.size == "H":
        config.model.patch_size = 14
    RECIPES[mim][dataset](config)
    config.hybrid.crop_scale, config.data.crop_scale = config.data.crop_scale, of_views
    HEADS[dataset](config)
    config.epochs = float(EPOCHS_OF[dataset])
    config.evaluate.knn_feature = "cls"  # as in configs/moco.py, at all weights

    pretraining.use_masks(config, chosen["mask"] or MASK_OF[mim], mim)
    if mim == "simmim" and chosen["mask"] == "amt":  # as in configs/simmim.py
        config.model.position, config.model.relative = "learned", "none"
    if chosen["epochs"]:
        pretraining.shorten(config, chosen["epochs"])
    return config


def _imagenet100_by_simmim(config):
    simmim.RECIPES["imagenet1k"](config)
    config.data.source = ""


# Images, model and optimiser of the masked method.
RECIPES = {
    "mae": mae.RECIPES,
    "simmim": simmim.RECIPES | {"imagenet100": _imagenet100_by_simmim},
}


# The augmented views and the heads of the contrastive loss.
HEADS = {
    "shapes": moco.views_and_heads_of_shapes,
    "small": moco.heads_of_small,
    "imagenet100": lambda config: None,
    "imagenet1k": lambda config: None,
}
