"""ADIOS: what its encoder is trained to do, at another size and at the ends of what masks cover."""

import jax
import numpy as np
import pytest
import tiny

from dppmask_jax import config as configs
from dppmask_jax import patches
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs.image_sizes import resized


def shapes_of(**changes):
    config = tiny.config("adios", **changes)
    configs.check(config)
    method = METHODS["adios"].build(config, Plan(4, 20, peak_lr=0.1))
    return config, jax.eval_shape(method.init, jax.random.key(0))


@pytest.mark.parametrize("objective", ["reconstruct", "simclr"])
def test_positions_at_another_size(objective):
    config, shapes = shapes_of(loss__objective=objective)
    params, extra = tiny.filled(shapes, seed=1)
    found, _, how = resized(params, extra, config, (24, 16))
    if objective == "simclr":
        assert how.endswith(": learned positions resized")
        assert found["encoder"]["positions"].shape[-2] == 6 * 4 + 1
        return
    assert how.endswith(": fixed positions resized, the decoder's as well")
    width_of = {part: params[part]["norm"]["scale"].shape[0] for part in ("encoder", "decoder")}
    for part, width in width_of.items():
        table = patches.fixed_positions((4, 4), width)
        expected = patches.resize_positions(table, (4, 4), (6, 4), 0.0)
        np.testing.assert_allclose(found[part]["positions"], expected, rtol=1e-6, err_msg=part)
    assert "positions" not in params["encoder"] and "positions" not in params["decoder"]
