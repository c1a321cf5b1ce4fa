"""Which tau? From random masks (1) to greedy ones (0), as far as DPPMask's tables do not go.

dppmask compare --study=tau --workdir=runs/compare --jobs=2 --study.source=folder:IMAGES \\
    --study.objects=csv:PETS/labels.csv

Runs are those of `cpu`, and DPPs at .95, .4 and 0.
"""

from dppmask_jax.recipes.studies import cpu


def get_config(argument: str = ""):
    study = cpu.get_config(argument)
    study.name = "tau"
    study.title = "Which tau?"
    study.about = (
        "DPP masks from random ones (tau 1) to those that are greedy to the last patch (tau 0). "
        "Recipe and runs of the first study."
    )
    study.seeds = (0, 1, 2)
    study.maskers = {name: cpu.MASKERS[name] for name in ("random", "dpp90", "dpp80", "dpp60")} | {
        "dpp95": {"strategy": "dpp", "tau": 0.95},
        "dpp40": {"strategy": "dpp", "tau": 0.4},
        "dpp00": {"strategy": "dpp", "tau": 0.0},
    }
    return study
