"""Evaluates a run by every task that looks at images, in a process of its own.

python tests/every_task.py MAE_RUN IBOT_RUN SOURCE OUT PORT PROCESS

PROCESS is the number of this process of two, or empty where it is alone.
"""

import sys

import tiny
from test_eval_tasks import QUICK

from dppmask_jax import evaluate, joining
from dppmask_jax.models.sizes import SIZES, Size

EVERY_TASK = (
    ("mae", "task=finetune", QUICK | {"epochs": 2.0, "checkpoint__every": 2, "seeds": (0, 1)}),
    ("mae", "task=linear", QUICK | {"epochs": 2.0}),
    ("mae", "task=linear", {"solver": "ridge"}),
    ("mae", "task=knn", {"k": (1, 5), "memory_gb": 1e-9}),
    ("ibot", "task=cluster", {"batch_size": 20}),
    ("mae", "task=multilabel,train=linear", QUICK | {"epochs": 2.0}),
    ("mae", "task=backgrounds", {"classifier": "finetune", "classifier_seed": 1}),
    ("mae", "task=reconstruct", {"num": 2}),
    ("mae", "task=soap", {"batch_size": 20}),
    ("mae", "task=frequencies", {"batch_size": 20}),
)


def main(mae, ibot, source, out, port, process):
    SIZES["Pi"] = Size(24, 2, 2)  # as fixture fewer_blocks has it, with which the runs were made
    if process:
        joining.initialize(f"127.0.0.1:{port}", 2, int(process))
    for name, argument, changes in EVERY_TASK:
        if "reconstruct" not in argument:
            changes = changes | {"data__source": source}
        evaluation = tiny.evaluation(argument, **changes)
        evaluate.evaluate(evaluation, {"mae": mae, "ibot": ibot}[name], out)


if __name__ == "__main__":
    main(*sys.argv[1:])
