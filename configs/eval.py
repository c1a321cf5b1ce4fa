"""Evaluate a pre-trained encoder, or a classifier.

python eval.py --config=configs/eval.py:task=linear --checkpoint=runs/mine

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
  dataset  shapes       CPU-sized recipes, a few minutes on two cores
           small        about 10,000 photographs
           imagenet100  ImageNet-100: the classes of the paper out of an ImageNet
           imagenet1k
  train    finetune | linear: what task=multilabel trains
  epochs   a whole number; the warm-up then takes at most a tenth of them

Where the images are: --config.data.source=folder:PATH, tfds:NAME, coco:ROOT, clevr:ROOT, csv:FILE
or shapes; without it those that the run was pre-trained on. `dataset` only chooses the recipe.

The result goes to WORKDIR/eval_TASK.json, the checkpoint's folder unless --workdir says otherwise;
the same command goes on where a training was interrupted.

Sources: MAE (arXiv 2111.06377, tables 9 and 10 and code) for finetune and linear; iBOT (arXiv
2111.07832) for knn and cluster; ASL (arXiv 2009.14119); ImageNet-9 (arXiv 2006.09994); DPPMask
(arXiv 2303.12736). What DPPMask does not state is marked below. The recipes of `shapes` and `small`
are this project's own.
"""

from ml_collections import config_dict

from configs import common

ARGUMENTS = {
    "task": ("knn", "finetune", "linear", "cluster", "multilabel", "backgrounds", "reconstruct"),
    "dataset": ("shapes", "small", "imagenet100", "imagenet1k"),
    "train": ("finetune", "linear"),
    "epochs": (0,),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    chosen = common.parse(argument, ARGUMENTS)
    task, dataset = chosen["task"], chosen["dataset"]
    config = config_dict.ConfigDict()
    config.task = task
    # (height, width) in pixels, multiples of the patches; None is the run's. For another size
    # positions are resized.
    config.image_size = config_dict.placeholder(tuple)
    if task == "reconstruct":
        _reconstruct(config)
        return config
    config.model = config_dict.ConfigDict()
    config.model.dtype = ""  # float32 | bfloat16; "" is the run's
    _data(config, dataset)
    if task in ("finetune", "linear", "multilabel"):
        kind = chosen["train"] if task == "multilabel" else task
        _training(config)
        {"finetune": _finetune, "linear": _linear}[kind](config, dataset)
        if chosen["epochs"]:
            config.epochs = float(chosen["epochs"])
            config.optim.warmup_epochs = min(config.optim.warmup_epochs, config.epochs / 10)
    if task == "linear":
        config.solver = "lars"  # lars | ridge
        config.ridge = RIDGE
    elif task == "multilabel":
        config.train = chosen["train"]
        _multilabel(config)
    elif task == "knn":
        config.k = (10, 20, 100, 200)  # neighbours; the best is usually 20
        config.temperature = 0.07
        config.center = False  # also of features less the training mean; not in the protocol of
        # DINO and iBOT, and not what a run logs
    elif task == "cluster":
        config.seeds = (0, 1, 2)  # of k-means
        config.num_clusters = 0  # of k-means; 0: as many as there are classes
    elif task == "backgrounds":
        _backgrounds(config)
    return config


# Strengths to choose from, a share of the features' variance.
RIDGE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def _data(config, dataset):
    config.batch_size = 256
    config.memory_gb = 8.0  # of features; more are kept in a file of the workdir
    config.data = config_dict.ConfigDict()
    config.data.source = ""  # "" is what the run was pre-trained on
    config.data.range = "auto"  # or BLACK,WHITE of grey files with more than 8 bits, as 0,4095
    config.data.dir = ""  # where tfds: and shapes keep their files
    config.data.val_fraction = 0.1  # held out where the source has no validation split; the run's,
    # and its range, dir and classes as well, where the source is the run's
    config.data.classes = "imagenet100" if dataset == "imagenet100" else ""
    config.data.workers = 0  # loader processes; 0 loads in threads


def _training(config):
    config.seeds = (0,)  # a training for each; mean and standard deviation are reported
    config.log_every = 20  # steps
    config.data.flip = True
    config.data.crop_scale = (0.08, 1.0)
    config.data.max_bad_frac = 0.01
    config.model.pool = "mean"  # mean of the patch tokens (paper) | cls
    config.loss = config_dict.ConfigDict()
    config.loss.kind = "softmax"  # softmax | bce | asl
    config.loss.smoothing = 0.0
    config.loss.gamma_neg = 4.0  # ASL
    config.loss.gamma_pos = 0.0
    config.loss.clip = 0.05
    config.optim = config_dict.ConfigDict()
    config.optim.final_lr = 0.0
    config.optim.weight_decay = 0.0
    config.optim.b1 = 0.9  # also the momentum of LARS
    config.optim.accum_steps = 1
    config.optim.max_bad_steps = 20
    config.checkpoint = config_dict.ConfigDict()
    config.checkpoint.every = 500  # steps
    config.checkpoint.every_minutes = 10.0  # since the last save, whatever the step; 0 is off
    config.checkpoint.keep = 1
    config.checkpoint.max_failed_saves = 3  # in a row, before the training stops
    config.evaluate = config_dict.ConfigDict()
    config.evaluate.every_epochs = 1.0  # 0: at the end alone


def _finetune(config, dataset):
    config.batch_size = 1024
    # Of ViT-B. MAE gives ViT-L and ViT-H 50 epochs, base_lr 1e-3, layer_decay 0.75 and drop_path
    # 0.2 and 0.3.
    config.epochs = 100.0
    config.optim.base_lr = 5e-4
    config.optim.final_lr = 1e-6
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.optim.layer_decay = 0.65
    config.optim.b2 = 0.999
    config.optim.epsilon = 1e-8
    config.optim.clip_norm = 0.0
    config.model.drop_path = 0.1
    config.model.remat = False
    config.loss.smoothing = 0.1
    config.data.randaugment = 9.0
    config.data.erase_prob = 0.25
    config.data.mixup = 0.8  # alpha of its Beta distribution
    config.data.cutmix = 1.0
    if dataset in ("imagenet100", "imagenet1k"):
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
    config.batch_size = 16384
    config.epochs = 90.0
    config.optim.base_lr = 0.1
    config.optim.warmup_epochs = 10.0
    if dataset in ("imagenet100", "imagenet1k"):
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


def _multilabel(config):
    config.data.whole = True  # test on whole images, squeezed to the model's shape: the usual crop
    # cuts labelled objects off (paper: not stated)
    config.threshold = 0.5  # of probabilities; ASL's code takes 0.8 (paper: not stated)
    config.loss.kind = "bce"
    config.loss.smoothing = 0.0
    if config.train == "finetune":
        config.data.mixup = 0.0
        config.data.cutmix = 0.0


def _backgrounds(config):
    config.seed = 0  # of the backgrounds that are mixed
    config.root = ""  # an ImageNet-9 folder; "" builds the variants from masks of the source
    config.classifier = "ridge"  # ridge: on frozen features, at once | own: the checkpoint's head,
    # where it is a classifier | finetune | linear: of a
    config.classifier_seed = 0  # training with this seed that eval.py finished in the same workdir
    config.mapping = "wnid"  # how the model's classes are those of root: by their WordNet ids,
    # the numbers of imagenet100 or imagenet1k, or the same classes
    config.ridge = RIDGE


def _reconstruct(config):
    config.seed = 0
    config.images = ""  # files or folders, separated by commas; "" is the run's validation split.
    # A comma in the name of one that exists separates nothing
    config.num = 6
    config.tau = config_dict.placeholder(float)  # of the DPP masks; None is the run's (paper,
    # figure 6: 0.8)
    config.borrow_statistics = False  # True: with the true brightness and contrast of each hidden
    # patch, which no model could know; False: estimated from visible patches (loss.norm_pix only)
