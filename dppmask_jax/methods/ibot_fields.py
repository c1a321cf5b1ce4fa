"""The fields of an iBOT config (arXiv 2111.07832), and what they must fulfil together."""

from __future__ import annotations

from dppmask_jax import optim
from dppmask_jax.data.images import augment, crops, views
from dppmask_jax.errors import InputError
from dppmask_jax.fields import (
    FLAG,
    Field,
    above,
    above_to,
    check_lengths,
    fraction_below_1,
    number,
    one_of,
    pair,
    several,
    whole,
    with_defaults,
)
from dppmask_jax.masking import kinds, num_masked, ratio_range
from dppmask_jax.methods.image_features import WITHOUT_ENCODER
from dppmask_jax.models import vit


def _temperature(which: str) -> dict[str, Field]:
    return {
        f"loss.{which}_temp.start": Field(
            0.04, above(0), f"temperature of the teacher's {which} targets at the start"
        ),
        f"loss.{which}_temp.end": Field(
            0.07, above(0), f"temperature of the teacher's {which} targets at the end"
        ),
        f"loss.{which}_temp.warmup_epochs": Field(
            30, whole(0), "epochs in which that temperature goes from start to end"
        ),
    }


FIELDS = {
    "model.drop_path": vit.FIELDS["model.drop_path"]._replace(default=0.1),
    "model.init_std": Field(
        0.02, above(0), "spread that every linear layer, token and position starts with"
    ),
    "model.head_hidden": Field(
        2048, whole(1, 2**16), "width of the head's hidden layers", fixed=True
    ),
    "model.head_bottleneck": Field(
        256, whole(1, 2**16), "width of the head before its last layer", fixed=True
    ),
    "model.prototypes": Field(8192, whole(2, 2**20), "outputs of the head", fixed=True),
    "model.shared_head": Field(True, FLAG, "one last layer for class and patch tokens", fixed=True),
    "model.norm_last_layer": Field(
        False, FLAG, "whether the length of each prototype is fixed", fixed=True
    ),
    **crops.FIELDS,
    "data.crop_scale": Field((0.25, 1.0), crops.SCALE, "area of the crops of the global views"),
    **augment.FIELDS,
    "data.local_views": Field(10, whole(0, 64), "small views of each image"),
    "data.local_size": Field(
        (96, 96),
        pair(whole(1, 16384), "(height, width) in pixels, such as (96, 96)"),
        "size of the small views",
    ),
    "data.local_scale": Field((0.05, 0.25), crops.SCALE, "area of the crops of the small views"),
    **views.FIELDS,
    "mask.ratio": Field(
        (0.0, 0.7),
        several(fraction_below_1, "a list such as (0.0, 0.7), each from 0 to below 1"),
        "shares of the patches that are masked; one is drawn a view, and (0.7,) masks every view",
    ),
    "mask.ratio_var": Field(
        (0.0, 0.05),
        several(fraction_below_1, "a list such as (0.0, 0.05), one a ratio"),
        "each share is uniform within plus or minus this",
    ),
    "mask.prob": Field(1.0, above_to(0, 1), "probability that a view is masked at all"),
    "mask.start_epoch": Field(0.0, number(0), "epochs before the first masks"),
    "mask.features": Field(
        "tokens",
        one_of("tokens", "head", *WITHOUT_ENCODER),
        "what the masks are drawn from: the teacher's patch tokens, its head's output, pixels, or "
        "positions alone",
    ),
    "loss.class_weight": Field(1.0, number(0), "weight of the class token's loss"),
    "loss.patch_weight": Field(1.0, number(0), "weight of the masked patches' loss; 0 is DINO"),
    "loss.student_temp": Field(0.1, above(0), "temperature of the student"),
    "loss.center_decay": Field(0.9, number(0, 1), "decay of the teacher's centres"),
    **_temperature("class"),
    **_temperature("patch"),
    "teacher.ema_decay": Field(
        0.996, number(0, 1), "decay of the teacher at the start; a cosine to 1 at the end"
    ),
    **with_defaults(
        optim.FIELDS,
        {
            "optim.base_lr": 5e-4,
            "optim.final_lr": 1e-6,
            "optim.warmup_epochs": 10.0,
            "optim.weight_decay": 0.04,
            "optim.weight_decay_end": 0.4,
            "optim.b2": 0.999,
            "optim.clip_norm": 3.0,
            "optim.clip_per_tensor": True,
        },
    ),
    "optim.freeze_last_layer_epochs": Field(
        1.0, number(0), "epochs before the last layer of the head moves", in_epochs=True
    ),
}


def check(config) -> None:
    """Raises InputError where fields of a config do not fit each other."""
    num_patches = vit.checked_patches("image_size", config.image_size, config.model.patch_size)
    if config.data.local_views:
        vit.checked_patches("data.local_size", config.data.local_size, config.model.patch_size)
    ratios, variations = tuple(config.mask.ratio), tuple(config.mask.ratio_var)
    where = f"config.mask.ratio={ratios}, config.mask.ratio_var={variations}"
    if len(ratios) != len(variations):
        raise InputError(f"{where}: give as many variations as ratios")
    if any(v > r or r + v >= 1 for r, v in zip(ratios, variations, strict=True)):
        raise InputError(f"{where}: each ratio ± its variation must stay within 0 to below 1")
    fewest, highest = (num_masked(num_patches, end) for end in ratio_range(ratios, variations))
    most = int(highest.max())
    hides_any = kinds.hides_any(config.mask)
    if most == num_patches:
        raise InputError(f"{where} masks all of the {num_patches} patches; change the ratio")
    if most == 0 and (hides_any or config.loss.patch_weight):
        raise InputError(
            f"{where} masks none of the {num_patches} patches; change the ratio, or set it to "
            "(0.0,) and config.loss.patch_weight=0 for a loss of class tokens alone (DINO)"
        )
    if hides_any:
        # A share that never masks a patch throws none away; one that may mask none may mask one.
        kinds.check_thrown(config.mask, num_patches, max(1, int(fewest[highest > 0].min())))
    if not config.loss.patch_weight and not config.model.shared_head:
        raise InputError(
            "config.model.shared_head=False makes a last layer for patches, which "
            "config.loss.patch_weight=0 never trains; set config.model.shared_head=True"
        )
    if not config.loss.class_weight and not config.loss.patch_weight:
        raise InputError("config.loss.class_weight and config.loss.patch_weight are both 0")
    start, frozen = config.mask.start_epoch, config.optim.freeze_last_layer_epochs
    check_lengths(config.epochs, {"mask.start_epoch": start}, below=True)
    check_lengths(
        config.epochs,
        {"optim.freeze_last_layer_epochs": frozen},
        below=True,
        scaled_by="ibot:epochs=N",
    )
