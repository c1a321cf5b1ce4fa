"""Train an encoder against a network that learns what to hide from it (ADIOS, arXiv 2201.13100).

dppmask train --config=adios:dataset=imagenet100,form=resnet \\
    --workdir=runs/mine --config.data.source=folder:/path/to/imagenet100

Arguments after the colon:

  dataset    shapes        generated images, 64 px, CPU-sized models. Minutes on two cores.
             small         about 10,000 photographs of 128 px; ViT-S/16 unless `size` says so.
             imagenet100   100 classes of ImageNet, 224 px.
             imagenet100s  the same of 96 px.
  form       vit | resnet: the default is vit, and resnet for imagenet100
  objective  simclr | reconstruct: the other view is recognised; or what is hidden is painted, by a
             ViT with MAE's decoder (ours)
  size       Pi, Mu (CPU), Ti, S, B, L, H: of a ViT
  epochs     a whole number; the warm-up then takes a tenth of them at most

The authors' are imagenet100 with form=resnet (ADIOS-s: one mask an image) and imagenet100s with
either form, batch 128, with the values of their scripts; none of them was run here. Their optimiser
is plain SGD. The authors' code wraps it in a clipped LARS, does not decay biases and norms, and
warms up from .003; these are left out.

What to expect: shapes, half an hour on two cores, k-NN of the class token from 32.9 % (untrained)
to 68.7 % (chance 11 %), see docs/contrastive_measured.md. The others were not run here.
"""

from ml_collections import config_dict

from dppmask_jax import config as pretraining
from dppmask_jax.recipes import common, ibot

ARGUMENTS = {
    "dataset": ("shapes", "small", "imagenet100", "imagenet100s"),
    "form": ("", "vit", "resnet"),
    "objective": ("simclr", "reconstruct"),
    "size": ("", "Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "epochs": (0,),
}
SIZE_OF = {"shapes": "Pi", "small": "S", "imagenet100": "Ti", "imagenet100s": "Ti"}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset = chosen["dataset"]
    form = chosen["form"] or ("resnet" if dataset == "imagenet100" else "vit")

    config = pretraining.defaults("adios")
    config.model.size = chosen["size"] or SIZE_OF[dataset]
    if config.model.size == "H":
        config.model.patch_size = 14
    config.loss.objective = chosen["objective"]
    if chosen["objective"] == "simclr":
        config.evaluate.knn_feature = "cls"  # what the loss is of
    config.batch_size = 128
    RECIPES[dataset](config, form)
    if chosen["objective"] == "reconstruct" and dataset != "shapes":
        _adamw(config)
    if form == "resnet":
        config.model.encoder = "resnet"
        config.model.patch_size = 32
    if chosen["epochs"]:
        pretraining.shorten(config, chosen["epochs"])
    return config


def _shapes(config, form):
    config.data.source = "shapes"
    config.image_size = (64, 64)
    config.batch_size = 64
    config.epochs = 12.0
    config.log_every = 31
    ibot.mild_views(config)
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.projector_hidden = 256
    config.model.projector_out = 64
    config.model.decoder_width = 64
    config.model.decoder_depth = 2
    config.model.decoder_heads = 4
    config.model.resnet = "18"
    config.model.resnet_width = 16
    config.masks.width = 8
    config.masks.sampled = True  # two passes of the encoder a turn instead of five
    for settings in (config.optim, config.masks.optim):
        settings.warmup_epochs = 2.0
        settings.kind = "adamw"
        settings.weight_decay = 0.05
        settings.base_lr = 4e-3
    if form == "resnet":
        config.optim.kind = "sgd"
        config.optim.weight_decay = 1e-4
        config.optim.base_lr = 0.4
    config.checkpoint.every = 124
    config.checkpoint.keep = 6
    config.evaluate.every_epochs = 2.0
    config.evaluate.loss_images = 512


def _small(config, form):
    del form
    config.data.source = ""
    config.image_size = (128, 128)
    config.model.resnet = "18"
    config.epochs = 200.0
    config.masks.width = 16
    _adamw(config)


def _adamw(config):
    """Ours, for few steps of a ViT, and for MAE's decoder."""
    for settings in (config.optim, config.masks.optim):
        settings.kind = "adamw"
        settings.weight_decay = 0.05
        settings.base_lr = 1e-3


def _imagenet100(config, form):
    """The authors' ADIOS-s of a ResNet-18."""
    config.data.source = ""
    config.model.resnet = "18"
    config.epochs = 400.0
    if form == "vit":
        _vit_of_96_px(config)
        return
    config.data.jitter = (0.7, 0.6, 0.8, 0.15)
    config.masks.sampled = True
    config.masks.width = 8
    config.masks.sparsity = 0.75
    config.optim.base_lr = 0.38  # 0.19 for 128 images
    config.masks.optim.base_lr = 1.0


def _imagenet100s(config, form):
    config.data.source = ""
    config.image_size = (96, 96)
    config.model.resnet = "18"
    if form == "vit":
        _vit_of_96_px(config)
        return
    config.epochs = 500.0
    config.optim.base_lr = 0.2226  # 0.1113 for 128 images
    config.masks.norm = "instance"
    config.masks.sparsity = 0.92
    config.masks.entropy = 0.71
    config.masks.optim.base_lr = 0.029


def _vit_of_96_px(config):
    config.epochs = 300.0
    config.masks.count = 6
    config.masks.width = 16
    config.masks.sparsity = 0.89


RECIPES = {
    "shapes": _shapes,
    "small": _small,
    "imagenet100": _imagenet100,
    "imagenet100s": _imagenet100s,
}
