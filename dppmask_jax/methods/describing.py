"""The lines of `Method.describe` that methods share."""

from __future__ import annotations

from dppmask_jax.masking import Masker


def described_masks(
    masker: Masker, num_masked: tuple[int, int], num_patches: int
) -> tuple[str, str]:
    """("masks", the masker and how many patches it hides, in words).

    Args:
      num_masked: the fewest and the most patches that a masked view has masked.
    """
    fewest, most = num_masked
    masked, visible = (
        f"{low}" if low == high else f"{low} to {high}"
        for low, high in ((fewest, most), (num_patches - most, num_patches - fewest))
    )
    return "masks", f"{masker.label}: {visible} visible, {masked} masked of {num_patches} patches"
