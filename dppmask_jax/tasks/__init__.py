"""The evaluations and analyses: name -> Task. A new one is a file like these and a line here."""

from dppmask_jax.analyses import (
    attention,
    attentive,
    diversity,
    frequencies,
    hidden,
    inside,
    layers,
    saliency,
    segmentation,
    shift,
    soap_task,
    spectra,
    tsne,
)
from dppmask_jax.evals import backgrounds, cluster, finetune, knn, linear, multilabel, reconstruct

TASKS = {
    "finetune": finetune.TASK,
    "linear": linear.TASK,
    "knn": knn.TASK,
    "cluster": cluster.TASK,
    "backgrounds": backgrounds.TASK,
    "multilabel": multilabel.TASK,
    "reconstruct": reconstruct.TASK,
    "attention": attention.TASK,
    "attentive": attentive.TASK,
    "diversity": diversity.TASK,
    "frequencies": frequencies.TASK,
    "hidden": hidden.TASK,
    "inside": inside.TASK,
    "layers": layers.TASK,
    "saliency": saliency.TASK,
    "segmentation": segmentation.TASK,
    "shift": shift.TASK,
    "soap": soap_task.TASK,
    "spectra": spectra.TASK,
    "tsne": tsne.TASK,
}
