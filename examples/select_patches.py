"""The selector alone, on features of your own: python examples/select_patches.py"""

import functools

import jax

from dppmask_jax import dpp


def main():
    features = jax.random.normal(jax.random.key(0), (8, 196, 768))  # (B, N, D), yours
    select = jax.jit(jax.vmap(functools.partial(dpp.select, num_keep=49, tau=0.9)))
    order, num_greedy = select(jax.random.split(jax.random.key(1), 8), features)
    visible, masked = order[:, :49], order[:, 49:]
    print("visible", visible.shape, "masked", masked.shape, "greedy picks", num_greedy)
    return visible, masked


if __name__ == "__main__":
    main()
