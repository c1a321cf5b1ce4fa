"""Train an autoencoder to undo paired image overlay, or a corruption that its paper compares it
with.

dppmask train --config=overlay:dataset=caltech256,alpha=0.3 \\
    --workdir=runs/mine --config.data.source=caltech256:/path/to/256_ObjectCategories

Arguments after the colon:

  dataset     shapes       generated images, 64 px, CPU-sized model. Minutes on two cores.
              small        about 10,000 photographs of 128 px; ViT-S/16 unless `size` says so.
              caltech256   the paper's run: ResNet-50, 224 px, SGD, 50 epochs, batch 256.
  form        vit | resnet: a ViT with MAE's decoder, or a ResNet with the decoder that mirrors it;
              the default is vit for shapes and small, resnet for caltech256
  corruption  overlay | pixels | autoaugment | none: mixed with another image; 1 % of the pixels
              zeroed (--config.data.zeroed: the paper has 1, 2, 3 and 4); AutoAugment's policy
  alpha       0.3 | 0 | 0.1 | 0.2 | 0.4: share of the other image
  mask        none | random | dpp | block: what is hidden after that, of a ViT alone. All other
              masks that MAE takes too: --config.mask.strategy=NAME with any but none.
  size        Pi, Mu (CPU), Ti, S, B, L, H: of a ViT
  epochs      a whole number; the warm-up then takes a tenth of them at most

How the encoders are fine-tuned and probed: docs/overlay.md. What to expect:

  shapes      half of it was run (epochs=6, form=vit, no masks): 8 minutes on two busy cores;
              validation loss 1.36 -> 0.22, k-NN accuracy 23.5 % untrained -> 29.4 % (raw pixels
              15.8 %, chance 11 %).
  small       not run here.
  caltech256  not run here. Paper, fine-tuned for 20 epochs, the best of them on the test images:
              38.1 % (alpha 0.3), 37.1 % (alpha 0), 32.5 % from scratch.
"""

from ml_collections import config_dict

from dppmask_jax import config as pretraining
from dppmask_jax.recipes import common, mae

ARGUMENTS = {
    "dataset": ("shapes", "small", "caltech256"),
    "form": ("", "vit", "resnet"),
    "corruption": ("overlay", "pixels", "autoaugment", "none"),
    "alpha": ("0.3", "0", "0.1", "0.2", "0.4"),
    "mask": ("none", "random", "dpp", "block"),
    "size": ("", "Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "epochs": (0,),
}
FORM_OF = {"shapes": "vit", "small": "vit", "caltech256": "resnet"}
SIZE_OF = {"shapes": "Pi", "small": "S", "caltech256": "B"}
EPOCHS_OF = {"shapes": 12, "small": 200, "caltech256": 50}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset = chosen["dataset"]

    config = pretraining.defaults("overlay")
    config.epochs = float(EPOCHS_OF[dataset])
    config.data.corruption = chosen["corruption"]
    config.data.alpha = float(chosen["alpha"])
    config.model.size = chosen["size"] or SIZE_OF[dataset]
    if config.model.size == "H":
        config.model.patch_size = 14
    if chosen["mask"] != "none":
        config.mask.strategy = chosen["mask"]
        config.mask.ratio = 0.75

    RECIPES[dataset](config)
    if (chosen["form"] or FORM_OF[dataset]) == "resnet":
        _resnet(config, dataset)
    if chosen["epochs"]:
        pretraining.shorten(config, chosen["epochs"])
    return config


def _caltech256(config):
    config.data.source = ""
    config.data.val_fraction = 0.2  # the paper's share; its split is not known
    config.data.flip = False  # the paper names a random resized crop alone
    config.data.crop_scale = (0.08, 1.0)
    config.optim.warmup_epochs = 5.0  # of a ViT; the paper has none
    config.checkpoint.every = 500
    config.evaluate.every_epochs = 5.0


def _resnet(config, dataset):
    """The paper's, but for smaller ones of shapes."""
    config.model.encoder = "resnet"
    config.model.patch_size = 32
    config.optim.kind = "sgd"
    config.optim.base_lr = 0.05
    config.optim.b1 = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 0.0
    if dataset == "shapes":
        config.model.resnet = "18"
        config.model.resnet_width = 16
        config.optim.base_lr = 0.8  # 0.2 for 64 images


# Of images and models of a size MAE has one already.
RECIPES = {name: mae.RECIPES[name] for name in ("shapes", "small")} | {"caltech256": _caltech256}
