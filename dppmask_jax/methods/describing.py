"""The lines of `Method.describe` that methods share."""

from __future__ import annotations

from dppmask_jax.masking import Masker


def described_masks(
    masker: Masker, num_hidden: tuple[int, int], num_patches: int
) -> tuple[str, str]:
    """("masks", the masker and how many patches it hides, in words).

    Args:
      num_hidden: the fewest and the most patches that a masked view hides.
    """
    fewest, most = num_hidden
    thrown = [min(masker.num_thrown(num_patches), max(hidden - 1, 0)) for hidden in num_hidden]
    numbers = {
        "visible": (num_patches - most, num_patches - fewest),
        "masked": (fewest - thrown[0], most - thrown[1]),
        "thrown": thrown,
    }
    words = [
        f"{low} {what}" if low == high else f"{low} to {high} {what}"
        for what, (low, high) in numbers.items()
        if high or what != "thrown"
    ]
    return "masks", f"{masker.label}: {', '.join(words)} of {num_patches} patches"
