"""Pre-train MoCo v3: two augmented views of an image are to find each other among other images.

dppmask train --config=moco:dataset=small,size=S,epochs=200 \\
    --workdir=runs/mine --config.data.source=folder:/path/to/images

Arguments after the colon:

  dataset  shapes       generated images, 64 px, CPU-sized model. Minutes on two cores.
           small        about 10,000 photographs of 128 px; ViT-S/16 unless `size` says otherwise.
           imagenet100  100 classes of ImageNet, 224 px.
           imagenet1k   the paper's run: 224 px, 300 epochs, batch 4096.
  form     vit | resnet: a ResNet-50 has the authors' projectors, LARS and crops for it
  size     Pi, Mu (CPU), Ti, S, B, L, H: of a ViT. Of imagenet100 and imagenet1k S or B are the
           paper's; S has 12 heads there.
  epochs   a whole number; the warm-up then takes a tenth of them at most

imagenet100 and small want --config.data.source=folder:PATH; --config.data.classes=imagenet100
takes the 100 classes out of a whole ImageNet. imagenet1k reads tfds:imagenet2012 unless told
otherwise. On a CPU add --config.model.dtype=float32. docs/contrastive.md says what is the authors'
and what ours.

What to expect:

  shapes       tries everything out on two CPU cores: k-NN of the class token from 28 % (untrained)
               to 43.5 % after 2 epochs, 54.7 % after 6 and 58.9 % after all 12 (chance 11 %). Its
               ResNet was only started.
  small        not run here.
  imagenet100  not run here.
  imagenet1k   not run here. Paper: ViT-B, linear 76.7 %; ViT-S 73.2 %; a ResNet-50, 300 epochs,
               72.8 %.
"""

from ml_collections import config_dict

from dppmask_jax import config as pretraining
from dppmask_jax.recipes import common, ibot

ARGUMENTS = {
    "dataset": ("shapes", "small", "imagenet100", "imagenet1k"),
    "form": ("vit", "resnet"),
    "size": ("", "Pi", "Mu", "Ti", "S", "B", "L", "H"),
    "epochs": (0,),
}
SIZE_OF = {"shapes": "Pi", "small": "S", "imagenet100": "S", "imagenet1k": "B"}
EPOCHS_OF = {"shapes": 12, "small": 200, "imagenet100": 300, "imagenet1k": 300}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    dataset = chosen["dataset"]

    config = pretraining.defaults("moco")
    config.epochs = float(EPOCHS_OF[dataset])
    config.model.size = chosen["size"] or SIZE_OF[dataset]
    if config.model.size == "S":
        config.model.heads = 12
    if config.model.size == "H":
        config.model.patch_size = 14
    config.evaluate.knn_feature = "cls"

    RECIPES[dataset](config)
    if chosen["form"] == "resnet":
        _resnet(config, dataset)
    if chosen["epochs"]:
        pretraining.shorten(config, chosen["epochs"])
    return config


def views_and_heads_of_shapes(config):
    ibot.mild_views(config)
    config.model.projector_hidden = 256
    config.model.projector_out = 64
    config.model.predictor_hidden = 256


def heads_of_small(config):
    config.model.projector_hidden = 1024
    config.model.projector_out = 128
    config.model.predictor_hidden = 1024


def _shapes(config):
    config.image_size = (64, 64)
    config.batch_size = 64
    config.log_every = 31
    views_and_heads_of_shapes(config)
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.optim.base_lr = 4e-3
    config.optim.warmup_epochs = 2.0
    config.checkpoint.every = 186
    config.evaluate.every_epochs = 2.0
    config.evaluate.loss_images = 512


def _small(config):
    config.data.source = ""
    config.image_size = (128, 128)
    config.model.patch_size = 16
    heads_of_small(config)
    config.optim.base_lr = 5e-4
    config.optim.warmup_epochs = 10.0
    config.checkpoint.every = 500
    config.evaluate.every_epochs = 5.0


def _imagenet100(config):
    config.data.source = ""
    config.batch_size = 1024
    config.checkpoint.every = 500


def _imagenet1k(config):
    config.data.source = "tfds:imagenet2012"
    config.batch_size = 4096


def _resnet(config, dataset):
    """The authors', but for smaller ones of shapes."""
    config.model.encoder = "resnet"
    config.model.patch_size = 32
    config.model.projector_layers = 2
    config.model.predictor_norm = False
    config.data.crop_scale = (0.2, 1.0)
    config.loss.temperature = 1.0
    config.optim.kind = "lars"
    config.optim.base_lr = 0.3  # 0.6 for 100 epochs
    config.optim.weight_decay = 1e-6
    config.optim.warmup_epochs = 10.0
    if dataset == "shapes":
        config.model.resnet = "18"
        config.model.resnet_width = 16
        config.loss.temperature = 0.2
        config.optim.warmup_epochs = 2.0


RECIPES = {
    "shapes": _shapes,
    "small": _small,
    "imagenet100": _imagenet100,
    "imagenet1k": _imagenet1k,
}
