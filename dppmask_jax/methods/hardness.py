"""The head that predicts how hard each patch is to predict, for masks of the hardest (HPM, arXiv
2304.05919).

The authors' head is a second decoder of the same size behind the same mask tokens; its P values of
a patch are averaged. Ours ends in one value. In SimMIM, which they do not train, it is a linear
layer on the encoder's tokens. It learns which of two masked patches of an image has the larger
loss. As in the authors' code gradients pass from it into the encoder, and not into the loss that it
predicts. The masks come from a copy that follows, see `mask_teacher`, which sees whole images.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dppmask_jax import masking
from dppmask_jax.fields import Field, number
from dppmask_jax.losses import ranking
from dppmask_jax.targets import Target

FIELDS = {
    "mask.rank_weight": Field(
        1.0, number(0), "hard: weight of the loss that predicts which patch is harder; paper: 1"
    ),
}


def is_needed(masker: masking.Masker) -> bool:
    """Whether a masker looks at what the head predicts."""
    return "hardness" in masker.needs


def per_patch(target: Target, pred, wanted):
    """(B, M) float32: the loss of each patch alone, of predictions and targets (B, M, P)."""

    def one(pred, wanted):
        return target.loss(pred[None, None], wanted[None, None], jnp.ones((1, 1), bool))

    return jax.vmap(jax.vmap(one))(pred, wanted)


def ranked(target: Target, pred, wanted, scores, is_masked):
    """() float32: the loss of the head.

    Args:
      pred, wanted: (B, M, P); gradients stop here.
      scores: (B, M), what the head says.
      is_masked: (B, M) bool.
    """
    losses = per_patch(target, jax.lax.stop_gradient(pred), wanted)
    return ranking.pairwise(scores, losses, is_masked)
