"""Is it the features that a DPP looks at, or that its patches lie apart?

dppmask compare --study=spacing --workdir=runs/compare --jobs=2 --study.source=folder:IMAGES \\
    --study.objects=csv:PETS/labels.csv

Masks of a DPP of features (tau 0.6) against masks that know nothing of the image. Measured by
`dppmask masklab` at 8 x 8 patches, 16 of them visible, with what the encoder of a run shows (MAE
with random masks, one epoch of photographs):

                         greedy picks  distance to the nearest  power at low frequencies,
                                       visible patch            of random masks about 1
    DPP, tau 0.6         11.3          1.31                     1.16
    green noise                        1.30                     1.22
    random                             1.27                     1.02
    blue noise                         1.19                     0.64
    positions, tau 0.05  10.3          1.18                     0.98
    grid                               1.14                     0.00
    positions, tau 0     16            1.08                     0.64

Green noise is spaced as the DPP is, positions at 0.05 have as many greedy picks, and the others lie
ever more evenly. Runs are those of `cpu`, but for positions at 0.
"""

from dppmask_jax.recipes.studies import cpu


def get_config(argument: str = ""):
    study = cpu.get_config(argument)
    study.name = "spacing"
    study.title = "Features, or spacing?"
    study.about = (
        "A DPP of features (tau 0.6) against masks that know nothing of the image: green noise, "
        "which is spaced as it is; as many greedy picks by position alone (tau 0.05); and random "
        "masks, blue noise, a DPP of positions at tau 0 and a grid, which are spaced more evenly. "
        "Recipe and runs of the first study."
    )
    study.base = "dpp60"
    study.seeds = (0, 1, 2)
    names = ("dpp60", "positions05", "green", "random", "blue", "grid")
    study.maskers = {name: cpu.MASKERS[name] for name in names} | {
        "positions00": {"strategy": "dpp", "tau": 0.0, "features": "positions"}
    }
    return study
