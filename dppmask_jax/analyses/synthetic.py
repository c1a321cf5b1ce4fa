"""Images without content, to ask an encoder what it makes of positions alone.

SOAP's generator (its code, CC0; written anew): pink noise, gradients and modulated white noise, in
a mixture of random weights. Everything is on the scale of normalised images, drawn on the device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.pixel_format import RGB, Pixels


def pink(white: jax.Array) -> jax.Array:
    """White noise whose amplitude falls with frequency: 1 / rho, the mean as it is.

    Args:
      white: (H, W, C), more than one pixel.

    Returns:
      (H, W, C) with a standard deviation of 1 in each channel; the mean is not taken off.
    """
    spectrum = jax.scipy.fft.dctn(white, axes=(0, 1), norm="ortho")
    rows, columns = (jnp.arange(side, dtype=jnp.float32) for side in white.shape[:2])
    radius = jnp.hypot(rows[:, None], columns).at[0, 0].set(1.0)
    noise = jax.scipy.fft.idctn(spectrum / radius[..., None], axes=(0, 1), norm="ortho")
    return noise / jnp.std(noise, axis=(0, 1), ddof=1)


def gradient(coefficients: jax.Array, size: tuple[int, int], pixels: Pixels = RGB) -> jax.Array:
    """(H, W, C) normalised: a x + b y + c, cut to 0 to 1, with x and y from 0 to 1.

    Args:
      coefficients: (C, 3), a, b and c of each channel.
    """
    y, x = (jnp.linspace(0.0, 1.0, side) for side in size)
    a, b, c = coefficients.T
    return pixels.normalize(jnp.clip(a * x[:, None] + b * y[:, None, None] + c, 0.0, 1.0))


def modulated_white(strength: jax.Array, white: jax.Array, pixels: Pixels = RGB) -> jax.Array:
    """White noise (H, W, C) whose strength (H, W, 1), as of a normalised grey image, differs from
    place to place."""
    strength = pixels.denormalize(strength)
    return jnp.clip(strength, 0.0, 1.0) * white


def synthetic_image(key: jax.Array, size: tuple[int, int], pixels: Pixels = RGB) -> jax.Array:
    """(H, W, C) float32: a mixture of modulated white noise, pink noise and a gradient, with
    weights of Dirichlet(1, 1, 2); by its key alone."""
    of_pink, of_white, of_gradient, of_weights = jax.random.split(key, 4)
    channels = pixels.channels
    grey_and_colors = pink(jax.random.normal(of_pink, (*size, 1 + channels)))
    parts = (
        modulated_white(
            grey_and_colors[..., :1], jax.random.normal(of_white, (*size, channels)), pixels
        ),
        grey_and_colors[..., 1:],
        gradient(jax.random.uniform(of_gradient, (channels, 3)), size, pixels),
    )
    return sum(weight * part for weight, part in zip(_weights(of_weights), parts, strict=True))


def _weights(key: jax.Array) -> jax.Array:
    """(3,) of Dirichlet(1, 1, 2): shares of exponential variables, the last of two of them."""
    first, second, *rest = jax.random.exponential(key, (4,))
    gammas = jnp.stack([first, second, sum(rest)])
    return gammas / gammas.sum()


@functools.partial(jax.jit, static_argnames=("size", "pixels"))
def numbered(
    key: jax.Array, numbers: jax.Array, size: tuple[int, int], pixels: Pixels = RGB
) -> jax.Array:
    """(B, H, W, C): the synthetic images of a key that have these numbers (B,)."""
    return jax.vmap(lambda n: synthetic_image(jax.random.fold_in(key, n), size, pixels))(numbers)


def synthetic_images(
    key: jax.Array, count: int, size: patches.PatchSize, pixels: Pixels = RGB
) -> jax.Array:
    """Images without content: mixtures of modulated white noise, pink noise and gradients.

    Args:
      key: image i is a function of it and of i alone.
      count: how many.
      size: (height, width) in pixels, or one number for both.
      pixels: of the images that they are to stand beside.

    Returns:
      (count, H, W, C) float32, on the scale of normalised images.
    """
    return numbered(key, jnp.arange(count), patches.sides(size), pixels)
