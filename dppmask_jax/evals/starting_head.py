"""Whether the head that a checkpoint has is one for the classes at hand."""

from __future__ import annotations

from collections.abc import Sequence

from dppmask_jax.evals.base import Evaluation
from dppmask_jax.evals.seeds import other_names
from dppmask_jax.methods.supervised import head_of
from dppmask_jax.runs.kinds import CLASSIFIER
from dppmask_jax.runs.run import Run


def head_for(
    run: Run, names: Sequence[str], *, several: bool, pool: str
) -> tuple[dict | None, str]:
    """The head of a classifier.

    Args:
      names: of the classes or labels that it has to know, in order. An imported head does not know
        the names of its own; as many are taken for the same.
      several: whether an image has any number of them.
      pool: what the head has to have been trained on, "mean" or "cls".

    Returns:
      (what `supervised.head_of` gives, "") or, where it does not fit, (None, why, in words).
    """
    if run.kind != CLASSIFIER:
        return None, f"the checkpoint is {run.name} run, which has none"
    config, count = run.config, len(run.params["head"]["bias"])
    if (config.task == "multilabel") != several:
        return None, f"it is one for task={config.task}"
    if config.model.pool != pool:
        return None, f"it is one for {config.model.pool} pooling, config.model.pool is {pool}"
    if count != len(names):
        return None, f"{count:,} classes there, {len(names):,} here"
    because = other_names(config.get("class_names", names), names)
    return (None, because) if because else (head_of(run.params), "")


def starting_head(evaluation: Evaluation, names: Sequence[str], *, several: bool) -> dict | None:
    """`head_for` a training to go on from, None for a fresh one; says which where it could be
    either."""
    run = evaluation.run
    head, because = head_for(run, names, several=several, pool=evaluation.config.model.pool)
    if run.kind == CLASSIFIER:
        evaluation.say(f"head: fresh ({because})" if because else "head: from the checkpoint")
    return head
