"""Runs of train.py killed without warning, over and over, in processes of their own."""

import faults
import pytest
import tiny

EVERY = 4
CHANGES = {
    "checkpoint__every": EVERY,
    "evaluate__knn_images": 0,
    "evaluate__every_epochs": 4.0,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kills", "epochs"),
    [
        ("mae", 5, 8),
        pytest.param("ibot", 3, 6, marks=pytest.mark.long),
        pytest.param("mae", 50, 50, marks=pytest.mark.faults),
        pytest.param("ibot", 50, 50, marks=pytest.mark.faults),
    ],
)
def test_a_run_killed_again_and_again_is_the_run_left_alone(method, kills, epochs, tmp_path):
    changes = CHANGES | {"epochs": float(epochs), "checkpoint__keep": 2}
    if method == "mae":
        changes |= {"evaluate__loss_images": 24}
    # Kills leave half-written entries: not among those of other tests.
    env = tiny.environment(1) | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    alone, victim = tmp_path / "alone", tmp_path / "victim"
    status, said = faults.run(
        tiny.command(alone, method=method, **changes), env, tmp_path / "alone.txt"
    )
    assert status == 0, said

    seen = faults.kill_at_random(
        tiny.command(victim, method=method, **changes),
        victim,
        env,
        tmp_path,
        kills=kills,
        seed=len(method) + kills,
        stride=9,
    )

    steps = 12 * epochs
    logged = [record["step"] for record in faults.curve(victim) if "loss" in record]
    assert logged == list(range(1, steps + 1))
    faults.assert_same_run(victim, alone)
    faults.assert_tidy(victim, steps - EVERY, steps)
    # What happened, for docs/reliability.md.
    print(f"\n{method}: {seen}, at most {max(seen.redone)} steps redone")
    assert seen.saving > 0, "no kill hit a save: this showed too little"
    assert max(seen.redone) <= EVERY
