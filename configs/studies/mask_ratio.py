"""Does DPPMask lead at every mask ratio, as figure 4 of its paper (arXiv 2303.12736) says?

dppmask compare --study=mask_ratio --workdir=runs/compare --jobs=2 --study.source=folder:IMAGES \\
    --study.objects=csv:PETS/labels.csv

Random and DPP masks (tau 0.9) that hide a half, 60, 75 and 85 % of the patches. Each ratio is a
method of its own, so that DPP masks are compared with random ones that hide as much. Runs at 75 %
are those of `cpu`.
"""

from dppmask_jax.recipes.studies import cpu


def get_config(argument: str = ""):
    study = cpu.get_config(argument)
    study.name = "mask_ratio"
    study.title = "At every mask ratio?"
    study.about = (
        "Random and DPP masks that hide 50, 60, 75 and 85 % of the patches (figure 4 of DPPMask's "
        "paper). Recipe of the first study, and its runs at 75 %."
    )
    study.seeds = (0, 1, 2)
    study.maskers = {name: cpu.MASKERS[name] for name in ("random", "dpp90")}
    del study.methods.mae
    for percent in (50, 60, 75, 85):
        method = cpu.method()
        method.mask.ratio = percent / 100
        study.methods[f"hides_{percent}"] = method
    return study
