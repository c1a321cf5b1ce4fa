"""What all pre-training configs share, and the `key=value` arguments after the colon."""

import difflib

from ml_collections import config_dict


def parse(argument: str, allowed: dict[str, tuple]) -> dict[str, str]:
    """Parses `key=value,key=value`.

    Args:
      argument: what stands after the colon of --config=FILE:…
      allowed: for each key the values that it may take, the default first; a default of type int
        allows any positive whole number.

    Raises:
      ValueError: an unknown key or value, in one line.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for part in filter(None, argument.split(",")):
        key, separator, value = part.partition("=")
        if not separator or key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]}=…?" if near else f"known: {', '.join(allowed)}"
            raise ValueError(f"unknown config argument {part!r}; {hint}")
        values = allowed[key]
        if isinstance(values[0], int):
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"config argument {key}={value}: it takes a whole number from 1")
            chosen[key] = int(value)
        elif value not in values:
            raise ValueError(
                f"config argument {key}={value}: it takes {' | '.join(filter(None, values))}"
            )
        else:
            chosen[key] = value
    return chosen


def base() -> config_dict.ConfigDict:
    """Fields of every pre-training run, with their defaults."""
    config = config_dict.ConfigDict()
    config.seed = 0
    config.image_size = (224, 224)  # height, width in pixels
    config.batch_size = 256  # images in one optimiser step, over all devices
    config.epochs = 100.0
    config.log_every = 50  # steps
    config.init_from = ""  # another run's workdir: start from its encoder

    config.data = config_dict.ConfigDict()
    config.data.source = "shapes"  # shapes | folder:PATH | tfds:NAME | coco: | clevr: | csv:
    config.data.classes = ""  # "" all | imagenet100 | FILE.txt: only these classes
    config.data.range = "auto"  # or BLACK,WHITE of grey files with more than 8 bits, as 0,4095
    config.data.dir = ""  # where tfds: and shapes keep their files; "" is the usual place
    config.data.val_fraction = 0.1  # held out where the source has no validation split
    config.data.crop_scale = (0.2, 1.0)  # area of the random resized crop
    config.data.flip = True
    config.data.workers = 0  # loader processes; 0 loads in threads
    config.data.max_bad_frac = 0.01  # of unreadable images

    config.mask = config_dict.ConfigDict()
    config.mask.tau = 0.9  # 0 fully greedy, 1 fully random; paper: 0.6 to 0.9
    config.mask.tau_end = config_dict.placeholder(float)  # linear schedule from tau to here
    config.mask.threshold_on = "d2"  # d2 | d: what tau is compared with (paper unclear)
    config.mask.kernel = "gaussian"  # gaussian | cosine
    config.mask.bandwidth = 1.0  # epsilon of the Gaussian; paper
    config.mask.normalize = "l2"  # l2 | center: on the image's mean first | standardize: each patch
    # to variance 1, which wants a bandwidth of as many as it has values (paper unclear)

    config.optim = config_dict.ConfigDict()
    config.optim.base_lr = 1.5e-4  # for 256 images a step
    config.optim.final_lr = 0.0
    config.optim.warmup_epochs = 40.0
    config.optim.weight_decay = 0.05
    config.optim.weight_decay_end = config_dict.placeholder(float)  # a cosine from there to here
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.epsilon = 1e-8
    config.optim.clip_norm = 0.0  # of the gradient; 0 is off
    config.optim.clip_per_tensor = False  # each tensor by itself, or all by their global norm
    config.optim.accum_steps = 1
    config.optim.max_bad_steps = 20  # in a row, before the run stops

    config.checkpoint = config_dict.ConfigDict()
    config.checkpoint.every = 1000  # steps
    config.checkpoint.every_minutes = 10.0  # since the last save, whatever the step; 0 is off
    config.checkpoint.keep = 2
    config.checkpoint.max_failed_saves = 3  # in a row, before the run stops

    config.evaluate = config_dict.ConfigDict()
    config.evaluate.every_epochs = 10.0  # 0 is off, at the start and the end too
    config.evaluate.knn_images = 20000  # of each split; 0 is off
    config.evaluate.knn_k = 20  # this and the temperature as in DINO and iBOT, and in task=knn
    config.evaluate.knn_temperature = 0.07
    config.evaluate.knn_feature = "patches"  # patches (their mean) | cls
    config.evaluate.figure_images = 6  # 0 draws no figures
    return config
