"""A run compiles its step once, and nothing after its first step."""

import jax
import pytest
import tiny

from dppmask_jax import pretrain
from dppmask_jax.training import fit, loop

EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """The names of all programs that XLA compiles, as it does."""
    names = []

    def listen(event, duration, **details):
        if event == EVENT:
            names.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method,changes",
    [
        ("mae", {"mask__tau_end": 0.5, "optim__accum_steps": 2}),
        pytest.param("ibot", {"mask__start_epoch": 0.3}, marks=pytest.mark.long),
    ],
)
def test_nothing_compiles_after_the_first_step(
    method, changes, compilations, tmp_path, monkeypatch
):
    before_step, after_loop = [], []
    make_step, run = fit.make_step, loop.run

    def counting_step(*args, **options):
        compiled = make_step(*args, **options)

        def step(*args):
            before_step.append(len(compilations))
            return compiled(*args)

        return step

    def counting_run(*args, **options):
        state = run(*args, **options)
        after_loop.append(len(compilations))
        return state

    monkeypatch.setattr(fit, "make_step", counting_step)
    monkeypatch.setattr(loop, "run", counting_run)
    # Probes, checkpoints and logged steps before, between and after; schedules that change.
    lengths = {"epochs": 1.0, "evaluate__every_epochs": 0.34, "model__depth": 1}
    config = tiny.config(method, **lengths, **changes)
    pretrain.train(config, tmp_path)

    assert len(before_step) == 12
    first, second = before_step[:2]
    assert second > first  # the listener hears of the step itself
    assert compilations[second : after_loop[0]] == []
