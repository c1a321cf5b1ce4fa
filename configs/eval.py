"""Evaluate a pre-trained encoder, or a classifier.

dppmask eval --config=eval:task=linear --checkpoint=runs/mine

Arguments after the colon:

  task     finetune     encoder, positions and head together (MAE's recipe); with
                        --config.epochs=0 a classifier is tested as it is
           linear       a linear layer on frozen features; --config.solver=lars is MAE's protocol,
                        ridge (closed form, features computed once) takes seconds
           knn          k nearest neighbours of frozen features
           cluster      how far clusters agree with the classes, by four definitions
           multilabel   several labels an image; train=finetune or train=linear
           backgrounds  the background challenge
           reconstruct  originals and reconstructions (MAE) side by side
           soap         components that respond to the position alone, and a projector that
                        damps them: soap.safetensors
           attention    how far attention reaches and whether it depends on the query, by block
           diversity    how alike heads, depths, tokens and images are, by block
           spectra      singular values of tokens and images, effective rank, RankMe, by block
           saliency     TokenCut: objects by patch tokens alone, against foreground masks
           attentive    a query that attends to frozen patch tokens, beside ridge and k-NN
           frequencies  which spatial frequencies tokens have, by block, and what noise of each
                        costs a classifier
           layers       k-NN and ridge accuracy of every block
           hidden       how often the run's masks hide a whole object
           shift        accuracy lost on changed images: --config.changed=folder:PATH
           tsne         a map of the tokens of images of several classes
           segmentation a class for each pixel from frozen patch tokens: k-NN, ridge, linear
           inside       all from soap to segmentation above with one command, and one page about
                        them: inside.md
  dataset  shapes       CPU-sized recipes, a few minutes on two cores
           small        about 10,000 photographs
           imagenet100  ImageNet-100: the classes of the paper out of an ImageNet
           imagenet1k
           caltech256   what paired overlay's paper does: finetune 20 epochs, linear 5, with SGD;
                        --config.scratch=True is its supervised training from scratch
  train    finetune | linear: what task=multilabel trains
  epochs   a whole number; the warm-up then takes at most a tenth of them

Where the images are: --config.data.source=folder:PATH, tfds:NAME, coco:ROOT, clevr:ROOT, csv:FILE,
saliency:ROOT, ade20k:ROOT, voc:ROOT or shapes; without it those that the run was pre-trained on.
`dataset` only chooses the recipe.

The result goes to WORKDIR/eval_TASK.json, the checkpoint's folder unless --workdir says otherwise;
the same command goes on where a training was interrupted.

Sources: MAE (arXiv 2111.06377, tables 9 and 10 and code) for finetune and linear; iBOT (arXiv
2111.07832) for knn and cluster; ASL (arXiv 2009.14119); ImageNet-9 (arXiv 2006.09994); DPPMask
(arXiv 2303.12736). --show_config prints all fields, and says what the paper leaves open. The
recipes of `shapes` and `small` are this project's own.
"""

from ml_collections import config_dict

from dppmask_jax.recipes import common
from dppmask_jax.tasks import checks

ARGUMENTS = {
    "task": tuple(dict.fromkeys(("knn", *checks.TASKS))),
    "dataset": ("shapes", "small", "imagenet100", "imagenet1k", "caltech256"),
    "train": ("finetune", "linear"),
    "epochs": (0,),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    task, dataset = chosen["task"], chosen["dataset"]
    config = checks.defaults(task, chosen["train"])
    if task == "reconstruct":
        return config
    if dataset == "imagenet100":
        config.data.classes = "imagenet100"
    kind = chosen["train"] if task == "multilabel" else task
    if kind in RECIPES:
        RECIPES[kind](config, dataset)
        if chosen["epochs"]:
            checks.shorten(config, chosen["epochs"])
    return config


def _finetune(config, dataset):
    if dataset in ("imagenet100", "imagenet1k"):
        return
    if dataset == "caltech256":
        _of_overlay(config, 20.0)
        config.loss.smoothing = 0.0
        config.optim.kind = "sgd"
        config.optim.final_lr = 0.0
        config.optim.layer_decay = 1.0
        config.data.randaugment = config.data.erase_prob = 0.0
        config.data.mixup = config.data.cutmix = 0.0
        config.model.drop_path = 0.0
        return
    config.batch_size = 128
    config.epochs = 100.0 if dataset == "small" else 15.0
    config.optim.layer_decay = 0.75
    if dataset == "shapes":
        # A small model has nothing to overfit with in so few epochs.
        config.batch_size = 64
        config.data.crop_scale = (0.4, 1.0)
        config.data.randaugment = 0.0
        config.data.erase_prob = 0.0
        config.data.mixup = 0.0
        config.data.cutmix = 0.0
        config.model.drop_path = 0.0
        config.optim.base_lr = 4e-3
        config.optim.warmup_epochs = 1.0


def _linear(config, dataset):
    if dataset in ("imagenet100", "imagenet1k"):
        return
    if dataset == "caltech256":
        _of_overlay(config, 5.0)
        if "solver" in config:
            config.solver = "sgd"
        return
    # MAE's peak rate is 6.4; LARS turns so slowly that fewer steps want at least as much.
    config.batch_size = 256
    config.epochs = 50.0 if dataset == "small" else 15.0
    config.optim.base_lr = 8.0
    config.optim.warmup_epochs = 1.0
    if dataset == "shapes":
        config.batch_size = 128
        config.optim.base_lr = 16.0
        config.data.crop_scale = (0.4, 1.0)


def _of_overlay(config, epochs):
    """What both have in common in the paper of paired overlay: SGD, no warm-up, no augmentation but
    the random resized crop."""
    config.epochs = epochs
    config.batch_size = 256
    config.data.flip = False
    config.optim.base_lr = 0.01
    config.optim.b1 = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 0.0


RECIPES = {"finetune": _finetune, "linear": _linear}
