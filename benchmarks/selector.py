"""How fast is the selector? jit(vmap(select)) against NumPy, exact k-DPP sampling and random masks.

    DPPMASK_TEST_DATA=/data python benchmarks/selector.py           # reads /data/photos
    python benchmarks/selector.py --images ~/photos --json out.json

Features are what an untrained ViT-B/16 MAE sees of photographs: a random patch embedding plus 2-D
sin-cos positions, N = 196 patches of width 768; 49 are kept. Kernel and loop are both counted,
for everyone, in float32 (exact sampling: float64). All contestants are warmed up and then timed in
turn, batch by batch; the table gives the median and the range in milliseconds an image. Where
threadpoolctl is installed, NumPy's BLAS gets one thread or one a core, whichever turns out faster.
Run it on an idle machine: on a busy one the medians say little. What each line does stands in
docs/selector.md. Takes about half a minute on 2 cores.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import hardware  # noqa: E402
import reference_dpp as reference  # noqa: E402
import spread  # noqa: E402

from dppmask_jax import dpp, imagenet, patches  # noqa: E402

SIZE, PATCH, WIDTH, NUM_KEEP = 224, 16, 768, 49
TAUS = (0.0, 0.6, 0.8, 0.9)
SETTLE = 0.05  # s
SLOW = ("exact", "sample_exact", "kernel and eigenvectors")  # timed less often
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MEAN, STD = np.float32(imagenet.MEAN), np.float32(imagenet.STD)


def find_images(folder):
    """Paths of the images in a folder and below, sorted."""
    paths = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted(path for path in paths if path.lower().endswith(SUFFIXES))


def load_photographs(folder, batch, size=SIZE):
    """((batch, size, size, 3) uint8 crops, number of files); mirrored where files run out."""
    from PIL import Image

    paths = find_images(folder)
    if not paths:
        sys.exit(f"{folder} holds no image ({', '.join(SUFFIXES)})")
    crops = []
    for path in paths[:batch]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        short = size * 8 // 7
        scale = short / min(image.size)
        width, height = (max(short, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        crops.append(np.asarray(image.crop((left, top, left + size, top + size))))
    crops += [crop[:, ::-1] for crop in crops]
    return np.stack([crops[i % len(crops)] for i in range(batch)]), len(paths[:batch])


def generate_images(batch, size=SIZE, seed=0):
    """(batch, size, size, 3) uint8 with a 1/f spectrum, as photographs have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.normal(size=(batch, 3, size, size))) / frequency
    images = np.fft.irfft2(noise, s=(size, size)).transpose(0, 2, 3, 1)
    images = images / images.std(axis=(1, 2, 3), keepdims=True)
    return np.uint8(np.clip(118 + 60 * images, 0, 255))


def features_of(images, seed=0):
    """(B, N, D) float32: untrained patch embedding plus position."""
    rng = np.random.default_rng(seed)
    pixels = patches.patchify((images / np.float32(255) - MEAN) / STD, PATCH)
    bound = (6 / (pixels.shape[-1] + WIDTH)) ** 0.5
    weights = rng.uniform(-bound, bound, (pixels.shape[-1], WIDTH)).astype(np.float32)
    grid = patches.grid_shape(images.shape[1:3], PATCH)
    return pixels @ weights + patches.sincos_positions(grid, WIDTH)


def contestants(features, num_keep):
    """{name: callable of a whole batch}; each returns what it chose as (B, >= k) and the picks."""
    keys = jax.random.split(jax.random.key(0), len(features))
    on_device = jnp.asarray(features)
    noise = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (features.shape[1],)))(keys))
    rng = np.random.default_rng(0)

    # What a user would write, with tau as an argument: one compilation for all of them.
    choose = jax.jit(
        jax.vmap(lambda key, x, tau: dpp.select(key, x, num_keep, tau), in_axes=(0, 0, None))
    )
    draw = jax.jit(jax.vmap(lambda key, x: dpp.sample_exact(key, dpp.gaussian_kernel(x), num_keep)))
    decompose = jax.jit(jax.vmap(lambda x: jnp.linalg.eigh(dpp.gaussian_kernel(x))[0]))
    gram = jax.jit(
        lambda x: jax.lax.map(lambda x: jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST), x)
    )

    def in_numpy(tau, stop):
        chosen = []
        for image, u in zip(features, noise, strict=True):
            kernel = reference.fast_kernel(image)
            chosen.append(reference.incremental_order(kernel, u, num_keep, tau, stop=stop))
        return np.stack([order for order, _ in chosen]), np.array([num for _, num in chosen])

    def exact():
        chosen = []
        for image in features:
            decomposition = reference.eigendecompose(reference.fast_kernel(image))
            chosen.append(reference.sample_k_dpp(*decomposition, num_keep, rng))
        return np.stack(chosen), None

    decompositions = [reference.eigendecompose(reference.fast_kernel(x)) for x in features]

    def exact_sampling_alone():
        chosen = [reference.sample_k_dpp(*pair, num_keep, rng) for pair in decompositions]
        return np.stack(chosen), None

    random = jax.jit(
        jax.vmap(lambda key: jnp.argsort(jax.random.uniform(key, (features.shape[1],))))
    )
    table = {}
    for tau in TAUS:
        table[f"select, tau {tau:g}"] = lambda tau=tau: jax.block_until_ready(
            choose(keys, on_device, tau)
        )
        table[f"NumPy, tau {tau:g}"] = lambda tau=tau: in_numpy(tau, stop=False)
        if tau > 0:
            table[f"NumPy that stops, tau {tau:g}"] = lambda tau=tau: in_numpy(tau, stop=True)
    table["Gram matrix alone (XLA)"] = lambda: (jax.block_until_ready(gram(on_device)), None)
    table["Gram matrix alone (NumPy)"] = lambda: ([x @ x.T for x in features], None)
    table["exact k-DPP, all"] = exact
    table["exact k-DPP, sampling alone"] = exact_sampling_alone
    table["sample_exact"] = lambda: (jax.block_until_ready(draw(keys, on_device)), None)
    table["kernel and eigenvectors (XLA)"] = lambda: (
        jax.block_until_ready(decompose(on_device)),
        None,
    )
    table["random"] = lambda: (jax.block_until_ready(random(keys)), None)
    return table


def limit_blas_threads(run):
    """Leaves NumPy's BLAS the number of threads with which `run` is fastest; returns that number.

    On a busy machine several BLAS threads wait for each other, up to ten times slower than one.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    fastest = {}
    for threads in (1, os.cpu_count()):
        with threadpool_limits(threads):
            run()
            times = []
            for _ in range(3):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            fastest[threads] = float(np.median(times))
    best = min(fastest, key=fastest.get)
    threadpool_limits(best)
    return best


def measure(table, repetitions, slow_repetitions):
    """({name: times in s}, {name: last answer}); the contestants take turns.

    A turn is a pause, a batch that is not timed and one that is: BLAS threads spin on for some
    20 ms after their work and would take a core from whoever is next.
    """
    answers = {name: run() for name, run in table.items()}  # warm-up, and compilation
    for name, run in table.items():
        if not name.startswith(SLOW):
            run()
    times = {name: [] for name in table}
    for repetition in range(repetitions):
        for name, run in table.items():
            if name.startswith(SLOW) and repetition >= slow_repetitions:
                continue
            time.sleep(SETTLE)
            run()
            start = time.perf_counter()
            answers[name] = run()
            times[name].append(time.perf_counter() - start)
    return times, answers


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", help="folder of photographs; default $DPPMASK_TEST_DATA/photos")
    parser.add_argument("--json", help="also write the results there")
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    parser.add_argument("--keep", type=int, default=NUM_KEEP, help="patches kept (default 49)")
    parser.add_argument("--repetitions", type=int, default=15, help="timed batches (default 15)")
    args = parser.parse_args()
    if args.batch < 1 or args.repetitions < 1:
        parser.error("--batch and --repetitions must be at least 1")
    return args


def chosen_images(folder: str | None, batch: int, size: int = SIZE) -> tuple[str, np.ndarray]:
    """(what they are, images): photographs of a folder, or of the test data, or generated ones."""
    if folder is None and os.environ.get("DPPMASK_TEST_DATA"):
        folder = os.path.join(os.environ["DPPMASK_TEST_DATA"], "photos")
    if folder is None:
        words = "generated 1/f textures (no --images, no DPPMASK_TEST_DATA)"
        return words, generate_images(batch, size)
    images, files = load_photographs(folder, batch, size)
    return f"{files} photographs" + (" and mirror images" if files < batch else ""), images


def report_times(times, batch: int) -> dict[str, dict[str, float]]:
    """Prints and returns the ms an image of each contestant."""
    found = {}
    print(f"\n{'':32}{'ms an image':>12}  {'(min - max)':17}")
    for name, seconds in times.items():
        found[name] = spread.of(seconds, 1e3 / batch)
        print("{:32}{median:12.3f}  ({min:.3f} - {max:.3f})".format(name, **found[name]))
    return found


def report_ratios(ms, answers) -> dict[str, dict]:
    """Prints and returns how many times faster `select` is, and how many patches it picks."""
    print("\nhow many times faster select is: by the median (by the fastest batch)")
    columns = {
        "numpy": ("than NumPy", 22),
        "numpy_that_stops": ("NumPy that stops", 20),
        "exact_k_dpp": ("exact k-DPP", 18),
        "sample_exact": ("sample_exact", 18),
    }
    print("".join(f"{words:>{width}}" for words, width in columns.values()), end="")
    print(f"{'picks mean':>13}{'max':>5}")
    found: dict[str, dict] = {"times_faster": {}, "greedy_picks": {}}
    for tau in TAUS:
        picks = np.asarray(answers[f"select, tau {tau:g}"][1])
        rivals = {
            "numpy": f"NumPy, tau {tau:g}",
            "exact_k_dpp": "exact k-DPP, all",
            "sample_exact": "sample_exact",
            "numpy_that_stops": f"NumPy that stops, tau {tau:g}" if tau else f"NumPy, tau {tau:g}",
        }
        own = ms[f"select, tau {tau:g}"]
        ratios = {
            by: {rival: ms[name][by] / own[by] for rival, name in rivals.items()}
            for by in ("median", "min")
        }
        found["times_faster"][f"{tau:g}"] = ratios
        found["greedy_picks"][f"{tau:g}"] = {"mean": float(picks.mean()), "max": int(picks.max())}
        start = f"  tau {tau:<3g}"
        for rival, (_, width) in columns.items():
            cell = f"{ratios['median'][rival]:.1f} ({ratios['min'][rival]:.1f})"
            print(f"{start}{cell:>{width - len(start)}}", end="")
            start = ""
        print(f"{picks.mean():13.1f}{picks.max():5}")
    gram = ms["Gram matrix alone (XLA)"]
    bound = {by: ms["NumPy, tau 0"][by] / gram[by] for by in ("median", "min")}
    print(f"  bound at tau 0, the Gram matrix alone: {bound['median']:.1f} ({bound['min']:.1f})")
    return found | {"gram_bound": bound}


def report_log_dets(features, answers, keep: int) -> dict[str, float]:
    """Prints and returns the mean log determinant of the kernels of what was kept."""
    kernels = [reference.fast_kernel(image.astype(np.float64)) for image in features]
    names = [f"select, tau {tau:g}" for tau in TAUS]
    names += ["exact k-DPP, all", "sample_exact", "random"]
    found = {}
    print("\nmean log det of the kept set's kernel")
    for name in names:
        kept = np.asarray(answers[name][0])[:, :keep]
        log_dets = [reference.log_det(k, chosen) for k, chosen in zip(kernels, kept, strict=True)]
        found[name] = float(np.mean(log_dets))
        print(f"  {name:30}{np.mean(log_dets):8.1f}")
    return found


def main():
    args = arguments()
    source, images = chosen_images(args.images, args.batch)
    features = features_of(images)
    table = contestants(features, args.keep)
    blas_threads = limit_blas_threads(table["NumPy, tau 0"])
    times, answers = measure(table, args.repetitions, min(7, args.repetitions))

    result = {
        "cpu": hardware.cpu_name(),
        "cores": os.cpu_count(),
        "blas_threads": blas_threads,
        "load_average": os.getloadavg()[0],
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "python": sys.version[:6]},
        "images": source,
        "batch": args.batch,
        "repetitions": args.repetitions,
    }
    print(f"{source}; batch {args.batch}, N {features.shape[1]}, D {WIDTH}, k {args.keep}")
    print(f"{result['cpu']}, {result['cores']} cores, load average ", end="")
    print(f"{result['load_average']:.1f}; BLAS threads {blas_threads or 'not limited'}")
    print(f"device {result['device']}; ", end="")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    result["ms_per_image"] = report_times(times, args.batch)
    result |= report_ratios(result["ms_per_image"], answers)
    result["mean_log_det"] = report_log_dets(features, answers, args.keep)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
