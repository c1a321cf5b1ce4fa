"""Pre-train DINO: self-distillation of class tokens, iBOT without its loss of patches.

dppmask train --config=dino:dataset=small,size=S,epochs=200 \\
    --workdir=runs/mine --config.data.source=folder:/path/to/images

Arguments after the colon:

  dataset  shapes       generated images, 64 px, CPU-sized model and head.
           small        about 10,000 photographs of 128 px; ViT-S/16 unless `size` says otherwise.
           imagenet100  ViT-S/16, 224 px, 100 epochs.
           imagenet1k   ViT-S/16, 224 px, 300 epochs.
  mask     none       DINO
           dpp, block, random, attention
                      ours: global views of the student are masked, and no patch is predicted. DPP
                      masks are drawn from the teacher's patch tokens, as in ibot
  size     Pi, Mu (CPU), Ti, S, B, L, H
  epochs   as in ibot, where the rest of the recipe comes from

The method is iBOT's with loss.patch_weight=0. Head and recipe of ImageNet are those of DINO's code
(arXiv 2104.14294) for ViT-S/16 in 300 epochs: 65,536 prototypes that keep their lengths free, the
teacher's temperature from 0.04 to 0.07 in 30 epochs, 8 local views, areas of the crops (0.4, 1) and
(0.05, 0.4), 1,024 images a step. --show_config prints all fields.

What to expect:

  shapes       k-NN of the class token from 32 % (untrained) to 47 % (chance 11 %), one run without
               masks; iBOT has 43 to 46 %. Not run with masks.
  others       not run here. For imagenet1k the authors name a k-NN accuracy of 73.3 %.
"""

from ml_collections import config_dict

from dppmask_jax import config as pretraining
from dppmask_jax.recipes import common, ibot

MASKS = ("none", "dpp", "block", "random", "attention")
ARGUMENTS = {**ibot.ARGUMENTS, "mask": MASKS}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset = chosen["dataset"]
    same = {name: chosen[name] for name in ("dataset", "size", "epochs") if chosen[name]}
    config = ibot.get_config(",".join(f"{name}={value}" for name, value in same.items()))
    config.loss.patch_weight = 0.0
    if chosen["mask"] == "none":
        config.mask.ratio = config.mask.ratio_var = (0.0,)
    else:
        pretraining.use_masks(config, chosen["mask"])
    if dataset == "shapes":
        return config
    config.data.crop_scale = (0.4, 1.0)
    config.data.local_scale = (0.05, 0.4)
    if dataset == "small":
        return config
    config.data.local_views = 8
    config.model.prototypes = 65536
    if dataset == "imagenet1k" and not chosen["epochs"]:
        config.epochs = 300.0
    return config
