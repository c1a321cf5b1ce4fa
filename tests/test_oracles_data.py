import jax
import jax.numpy as jnp
import numpy as np
import oracles

from dppmask_jax.data.images import crops, mixing
from dppmask_jax.scores import nearest

pytestmark = oracles.MARKS
# Their partner is the batch reversed, ours the neighbour: in this order they are the same.
PAIRS = np.array([0, 5, 1, 4, 2, 3])


def drawn(monkeypatch, lam, centre=()):
    """Hands `mixing` what their code had drawn."""
    centre = iter(centre)
    monkeypatch.setattr(jax.random, "beta", lambda *_, **__: jnp.float32(lam))
    monkeypatch.setattr(jax.random, "randint", lambda *_, **__: jnp.int32(next(centre)))


def mixed(oracle, smoothing=0.1, **alphas):
    targets = mixing.smooth_one_hot(oracle["labels"], int(oracle["num_classes"]), smoothing)
    images = oracles.images(oracle["images"])
    found = mixing.mix(images[PAIRS], targets[PAIRS], jax.random.key(0), **alphas)
    return [np.asarray(one)[np.argsort(PAIRS)] for one in found]


def test_mixup(monkeypatch):
    oracle = oracles.load("mixup")
    for lam in (1.0, 0.8, 0.37, 0.0):
        drawn(monkeypatch, lam)
        for smoothing in (0.0, 0.1):
            images, targets = mixed(oracle, smoothing, cutmix=0.0)
            expected = oracle[f"target_s{smoothing}_lam{lam}"]
            oracles.near(f"mixup, targets {smoothing}, {lam}", targets, expected, 1e-6)
        if f"mixup_images_lam{lam}" in oracle:
            expected = oracles.images(oracle[f"mixup_images_lam{lam}"])
            oracles.near(f"mixup, images {lam}", images, expected, 1e-6)
    drawn(monkeypatch, 0.37)
    images, targets = mixed(oracle, cutmix=0.0)
    oracles.near("mixup, call", images, oracles.images(oracle["call_mixup_0.37_images"]), 1e-6)
    oracles.near("mixup, call, targets", targets, oracle["call_mixup_0.37_targets"], 1e-6)


def test_cutmix(monkeypatch):
    oracle, size = oracles.load("mixup"), (8, 10)
    for lam in ("0.6", "0.05", "0.97"):
        top, bottom, left, right = oracle[f"call_cutmix_{lam}_box_yl_yh_xl_xh"].tolist()
        cut = [int(np.sqrt(1 - float(lam)) * side) for side in size]
        ends = ((top, bottom), (left, right))
        centre = [
            low + c // 2 if high == side else high - (c - c // 2)
            for (low, high), c, side in zip(ends, cut, size, strict=True)
        ]
        drawn(monkeypatch, float(lam), centre)
        images, targets = mixed(oracle, mixup=0.0)
        expected = oracles.images(oracle[f"call_cutmix_{lam}_images"])
        oracles.same(f"mixup, cutmix {lam}", images, expected)
        expected = oracle[f"call_cutmix_{lam}_targets"]
        oracles.near(f"mixup, cutmix {lam}, targets", targets, expected, 1e-6)
    sides = []
    for lam, _ in oracle["box_side_for_lam"]:
        drawn(monkeypatch, 0.0, (112, 112))
        box = mixing._box(jax.random.key(0), jnp.float32(lam), 224, 224)
        sides.append(np.asarray(box).any(axis=1).sum())
    oracles.same("mixup, side of the box", sides, oracle["box_side_for_lam"][:, 1])


def test_shares_of_cutmix():
    oracle, draws = oracles.load("mixup"), 4000
    keys = jax.random.split(jax.random.key(0), draws)

    @jax.jit
    @jax.vmap
    def kept(key):
        lam_key, box_key = jax.random.split(key)
        return 1.0 - jnp.mean(mixing._box(box_key, jax.random.beta(lam_key, 1.0, 1.0), 224, 224))

    found = np.asarray(kept(keys))
    error = abs(found.mean() - oracle["cutmix224_mean_corrected_lam"])
    oracles.below("mixup, mean share of CutMix", error, 4 * found.std() / np.sqrt(draws))


def test_single_draw_crop():
    oracle, draws = oracles.load("mae_single_draw_crop"), 6000
    rng = np.random.default_rng(0)
    for size in ("300x200", "224x224", "90x400"):
        width, height = map(int, size.split("x"))
        if f"{size}_full_height_share" not in oracle:
            continue
        boxes = np.array(
            [crops.single_draw_box(rng, width, height, scale=(0.08, 1.0)) for _ in range(draws)]
        )
        left, top, box_width, box_height = boxes.T
        found = np.stack([top, left, box_height, box_width])
        spread = oracle[f"{size}_std_ijhw"]
        error = np.abs(found.mean(axis=1) - oracle[f"{size}_mean_ijhw"])
        error /= spread * np.sqrt(1 / draws + 1 / oracle["draws"])
        oracles.below(f"mae_single_draw_crop, {size}, means, in standard errors", error.max(), 4)
        for name, is_full in (("height", box_height == height), ("width", box_width == width)):
            share = oracle[f"{size}_full_{name}_share"]
            spread = np.sqrt(max(share * (1 - share), 1e-4) * (1 / draws + 1 / oracle["draws"]))
            error = abs(is_full.mean() - share) / spread
            oracles.below(f"mae_single_draw_crop, {size}, full {name}, the same", error, 4)


def test_nearest_neighbours():
    oracle = oracles.load("ibot_knn")
    found = nearest.accuracies(
        oracle["train"], oracle["train_labels"], oracle["test"], oracle["test_labels"],
        num_classes=12, ks=(10, 20, 100, 200),
    )  # fmt: skip
    for k, accuracy in found.items():
        oracles.near(f"ibot_knn, k {k}, %", 100 * accuracy, oracle[f"top1_k{k}"], 1e-9)
