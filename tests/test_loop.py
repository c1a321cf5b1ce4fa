import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dppmask_jax import optim, parallel
from dppmask_jax.errors import InputError
from dppmask_jax.methods.base import Method, Turn
from dppmask_jax.optim import Optimizer
from dppmask_jax.runs import checkpoint
from dppmask_jax.training import loop
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(0)
UNTROUBLED = loop.Limits(bad_steps=1, bad_frac=0.0, num_images=100)


def toy_method(optimizer=None):
    """Least squares with a running mean of the inputs as `extra`."""

    def init(key):
        return {"w": jnp.ones((3,))}, {"mean": jnp.zeros(())}

    def loss(params, extra, batch, key, step):
        error = batch["image"] @ params["w"] - batch["label"]
        return jnp.mean(error**2), ({"largest": jnp.max(error)}, {"mean": jnp.mean(batch["image"])})

    def after_step(params, extra, aux, step):
        return {"mean": 0.5 * extra["mean"] + 0.5 * aux["mean"]}

    return Method(
        example=None,
        init=init,
        turns=(Turn(loss, optimizer or sgd()),),
        after_step=after_step,
        report=lambda extra, aux, step: {"mean": extra["mean"]},
    )


def sgd(rate=0.1):
    return Optimizer(optax.sgd(1.0, momentum=0.9), lambda step: rate / (1.0 + step))


def toy_batch(seed, size=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    label = x @ np.array([1.0, -2.0, 0.5], np.float32)
    return {"image": x, "label": label, "bad": np.zeros(size, bool)}


def start(method):
    return parallel.replicate(init_state(method, KEY))


def test_step_equals_the_update_written_out():
    method = toy_method()
    state = start(method)
    step = make_step(method)
    w, velocity, mean = np.ones(3), np.zeros(3), 0.0
    for i in range(3):
        batch = toy_batch(i)
        state, metrics = step(state, parallel.split_batch(batch), KEY)
        x, y = batch["image"].astype(np.float64), batch["label"].astype(np.float64)
        grad = 2 * x.T @ (x @ w - y) / len(x)
        np.testing.assert_allclose(metrics["loss"], np.mean((x @ w - y) ** 2), rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(grad), rtol=1e-5)
        velocity = 0.9 * velocity + grad
        w = w - 0.1 / (1 + i) * velocity
        mean = 0.5 * mean + 0.5 * x.mean()
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.extra["mean"], mean, rtol=1e-4, atol=1e-6)
        assert float(metrics["mean"]) == float(state.extra["mean"])
    assert int(state.step) == 3


def test_accumulated_micro_batches_equal_one_batch():
    method = toy_method()
    results = []
    for accum_steps in (1, 2):
        step = make_step(method, accum_steps=accum_steps)
        state = start(method)
        for i in range(3):
            state, metrics = step(state, parallel.split_batch(toy_batch(i, 16)), KEY)
        results.append((state.params["w"], state.extra["mean"], metrics["loss"]))
    for one, several in zip(*results, strict=True):
        np.testing.assert_allclose(one, several, rtol=1e-5)


def test_a_loss_is_traced_once_however_many_micro_batches_there_are():
    method = toy_method()
    (turn,) = method.turns
    traces = []

    def loss(*args):
        traces.append(args)
        return turn.loss(*args)

    method = method._replace(turns=(turn._replace(loss=loss),))
    step = make_step(method, accum_steps=4)
    step(start(method), parallel.split_batch(toy_batch(0, 16)), KEY)
    assert len(traces) == 1


def test_a_step_takes_no_gradient_of_what_is_frozen():
    def loss(params, extra, batch, key, step):
        hidden = batch["image"] * params["encoder"]["patch_embed"]["kernel"]
        error = hidden @ params["w"] - batch["label"]
        return jnp.mean(error**2), ({}, {"mean": jnp.zeros(())})

    kernel = np.float32([0.1, -0.7, 1.3])
    settings = {"learning_rate": lambda step: 0.1, "weight_decay": lambda step: 0.3, "b1": 0.9}
    optimizer = optim.adamw(
        **settings, b2=0.95, epsilon=1e-8, clip=optax.clip_by_global_norm(0.5),
        decays=lambda path, parameter: True, frozen=optim.below("encoder", "patch_embed"),
    )  # fmt: skip
    method = toy_method()._replace(
        init=lambda key: (
            {"w": jnp.ones(3), "encoder": {"patch_embed": {"kernel": jnp.asarray(kernel)}}},
            {"mean": jnp.zeros(())},
        ),
        turns=(Turn(loss, optimizer),),
    )
    step, state = make_step(method), start(method)
    for i in range(2):
        batch, w = toy_batch(i), np.asarray(state.params["w"], np.float64)
        state, metrics = step(state, parallel.split_batch(batch), KEY)
        x = batch["image"].astype(np.float64) * kernel
        gradient = 2 * x.T @ (x @ w - batch["label"]) / len(x)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
        found = np.asarray(state.params["encoder"]["patch_embed"]["kernel"])
        assert found.tobytes() == kernel.tobytes() and np.all(state.params["w"] != np.float32(w))


def trapped(optimizer=None):
    """The toy with a loss that stays finite where only its gradient is not: the root of 0."""
    method = toy_method(optimizer)
    (turn,) = method.turns

    def loss(params, extra, batch, key, step):
        value, rest = turn.loss(params, extra, batch, key, step)
        w = params["w"][0]
        change = w - jax.lax.stop_gradient(w)
        to_nan, to_inf = jnp.mean(batch["to_nan"]), jnp.mean(batch["to_inf"])
        return value + jnp.sqrt(to_nan * w**2) + jnp.sqrt(to_inf + change), rest

    return method._replace(turns=(turn._replace(loss=loss),))


def trapped_batch(seed, trap=""):
    free = {name: np.ones(8, np.float32) for name in ("to_nan", "to_inf")}
    return toy_batch(seed) | free | ({trap: np.zeros(8, np.float32)} if trap else {})


@pytest.mark.parametrize("fault", ["loss nan", "loss inf", "to_nan", "to_inf", "update"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(fault):
    optimizer = sgd()
    if fault == "update":  # of finite gradients, in the second step
        optimizer = Optimizer(optimizer.tx, lambda step: jnp.where(step == 0, 0.1, 3e38))
    method = trapped(optimizer)
    step = make_step(method)
    state, _ = step(start(method), parallel.split_batch(trapped_batch(0)), KEY)
    before = parallel.to_host(state)
    bad = trapped_batch(1, fault if fault.startswith("to_") else "")
    if fault.startswith("loss"):
        bad["image"][5, 1] = float(fault.split()[1])
    for count in (1, 2):
        state, metrics = step(state, parallel.split_batch(bad), KEY)
        assert int(state.bad_steps) == int(metrics["bad_steps"]) == count
    assert np.isfinite(metrics["loss"]) == (not fault.startswith("loss"))
    assert np.isfinite(metrics["grad_norm"]) == (fault == "update")
    after = parallel.to_host(state)
    for name in ("params", "opt_state", "extra"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert int(state.step) == 3
    if fault != "update":
        state, _ = step(state, parallel.split_batch(trapped_batch(2)), KEY)
        assert int(state.bad_steps) == 0
        assert not np.array_equal(state.params["w"], before.params["w"])


PULL, RATES = 0.3, (0.1, 0.2)


def two_players():
    """A generator g that lowers (g - x)² + g a, and after it an adversary a that raises that less
    0.15 a²; both have momentum."""

    def value(params, batch):
        pull = PULL * params["a"] ** 2 / 2
        return jnp.mean((params["g"] - batch["image"]) ** 2) + params["g"] * params["a"] - pull

    def turn(sign, name, rate, called):
        def loss(params, extra, batch, key, step):
            found = sign * value(params, batch)
            return found, ({f"sum_{name}": found}, {name: found})

        return Turn(loss, sgd(rate), frozenset(name), called)

    return Method(
        example=None,
        init=lambda key: ({"a": jnp.ones(()), "g": jnp.ones(())}, {"sum": jnp.zeros(())}),
        turns=(turn(1, "g", RATES[0], ""), turn(-1, "a", RATES[1], "adversary")),
        after_step=lambda params, extra, aux, step: {"sum": extra["sum"] + aux["g"] + aux["a"]},
    )


def value_of_players(g, a, x):
    return np.mean((g - x) ** 2) + g * a - PULL * a**2 / 2


@pytest.mark.parametrize("accum_steps", [1, 2])
def test_two_players_take_turns_as_computed_by_hand(accum_steps):
    method = two_players()
    state, step = start(method), make_step(method, accum_steps=accum_steps)
    g, a, velocities, total = 1.0, 1.0, [0.0, 0.0], 0.0
    for number in range(4):
        x = np.random.default_rng(number).normal(size=16)
        batch = {"image": x.astype(np.float32), "bad": np.zeros(16, bool)}
        state, metrics = step(state, parallel.split_batch(batch), KEY)
        first, of_g = value_of_players(g, a, x), 2 * np.mean(g - x) + a
        velocities[0] = 0.9 * velocities[0] + of_g
        g -= RATES[0] / (1 + number) * velocities[0]
        # The adversary sees the new g.
        second, of_a = -value_of_players(g, a, x), -(g - PULL * a)
        velocities[1] = 0.9 * velocities[1] + of_a
        a -= RATES[1] / (1 + number) * velocities[1]
        total += first + second
        expected = {
            "loss": first, "loss_adversary": second, "grad_norm": abs(of_g), "sum_a": second,
            "grad_norm_adversary": abs(of_a), "lr": RATES[0] / (1 + number), "sum_g": first,
            "lr_adversary": RATES[1] / (1 + number), "bad_steps": 0, "bad_images": 0, "wish": 0,
        }  # fmt: skip
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
        found = (state.params["g"], state.params["a"], state.extra["sum"])
        np.testing.assert_allclose(found, (g, a, total), rtol=2e-5)
    assert len(state.opt_state) == 2  # each with the velocity of what it trains
    assert [x.shape for x in jax.tree.leaves(state.opt_state)] == [(), ()]


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_turn_that_is_not_finite_skips_the_step_of_all(faulty):
    method = two_players()
    turns = list(method.turns)
    good = turns[faulty].loss

    def loss(params, extra, batch, key, step):
        value, rest = good(params, extra, batch, key, step)
        return jnp.where(step == 1, jnp.nan, 1.0) * value, rest

    turns[faulty] = turns[faulty]._replace(loss=loss)
    step = make_step(method._replace(turns=tuple(turns)))
    batch = {"image": np.ones(8, np.float32), "bad": np.zeros(8, bool)}
    state, _ = step(start(method), parallel.split_batch(batch), KEY)
    before = parallel.to_host(state)
    state, metrics = step(state, parallel.split_batch(batch), KEY)
    assert int(metrics["bad_steps"]) == 1 and int(state.step) == 2
    pairs = [("loss", "grad_norm"), ("loss_adversary", "grad_norm_adversary")]
    assert loop.of_turns(metrics) == pairs
    assert [bool(np.isfinite(metrics[name])) for name, _ in pairs] == [faulty == 1, False]
    for name in ("params", "opt_state", "extra"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(before, name),
            getattr(parallel.to_host(state), name),
        )
    state, metrics = step(state, parallel.split_batch(batch), KEY)
    assert int(state.bad_steps) == 0 and float(state.params["a"]) != before.params["a"]


class Recorder:
    def __init__(self):
        self.logged, self.saved, self.shown = [], [], []

    def save(self, step, state):
        self.saved.append(step)

    def reporting(self, every, **more):
        return loop.Reporting(
            every,
            log=lambda step, values: self.logged.append((step, values)),
            progress=lambda step, values: self.shown.append(step),
            **more,
        )


def run_toy(
    batches,
    recorder,
    *,
    total_steps,
    start_step=0,
    log_every=2,
    save_every=3,
    limits=UNTROUBLED,
    saving=None,
    **reporting,
):
    method = toy_method()
    return loop.run(
        make_step(method),
        start(method),
        batches,
        loop.Span(start_step, total_steps, 8, KEY),
        limits=limits,
        saving=loop.Saving(save_every, recorder.save, **(saving or {})),
        reporting=recorder.reporting(log_every, **reporting),
    ).state


def test_loop_logs_probes_and_saves_when_due():
    recorder = Recorder()
    hook = loop.Hook(4, lambda state, step: {"probe": float(state.step)})
    state = run_toy((toy_batch(i) for i in range(99)), recorder, total_steps=7, hooks=(hook,))
    assert int(state.step) == 7
    training = [step for step, values in recorder.logged if "loss" in values]
    assert training == [2, 4, 6, 7] == recorder.shown
    # Before the first step, every fourth, and at the end; the state is the one of that step.
    probes = [(step, values["probe"]) for step, values in recorder.logged if "probe" in values]
    assert probes == [(0, 0.0), (4, 4.0), (7, 7.0)]
    assert recorder.saved == [3, 6, 7]
    values = dict(recorder.logged)[6]
    assert {"loss", "lr", "grad_norm", "images_per_sec", "data_wait_frac"} <= values.keys()
    assert 0 <= values["data_wait_frac"] <= 1 and values["images_per_sec"] > 0


def test_loop_goes_on_from_where_it_was():
    recorder = Recorder()
    hook = loop.Hook(4, lambda state, step: {"probe": 1.0})
    run_toy((toy_batch(i) for i in range(4, 9)), recorder, total_steps=8, start_step=4,
            hooks=(hook,))  # fmt: skip
    assert [step for step, values in recorder.logged if "probe" in values] == [8]
    assert recorder.saved == [6, 8]


def test_a_save_is_made_within_two_steps_of_a_wish_for_one_and_changes_no_number():
    recorder, wishes, beats = Recorder(), [], []

    def overdue():
        wishes.append(len(recorder.saved))
        return len(wishes) in (2, 5, 6)  # of the steps 2, 5 and 6

    states = [
        run_toy(
            (toy_batch(i) for i in range(99)),
            heard,
            total_steps=9,
            log_every=9,
            save_every=9,
            **more,
        )
        for heard, more in (
            (recorder, {"saving": {"overdue": overdue}, "beat": beats.append}),
            (Recorder(), {}),
        )
    ]
    assert recorder.saved == [3, 6, 9] and beats == list(range(1, 10))
    np.testing.assert_array_equal(*(state.params["w"] for state in states))


def test_a_hook_of_every_0_steps_runs_at_both_ends():
    recorder = Recorder()
    hook = loop.Hook(0, lambda state, step: {"probe": 1.0})
    run_toy((toy_batch(i) for i in range(9)), recorder, total_steps=3, hooks=(hook,))
    assert [step for step, values in recorder.logged if "probe" in values] == [0, 3]


def poisoned_from(step, start_step=0, until=99):
    """Batches of which those of the steps `step` to `until` - 1 give a loss that is no number."""
    for i in range(start_step, 99):
        batch = toy_batch(i)
        if step <= i + 1 < until:
            batch["image"][0] = np.nan
        yield batch


@pytest.mark.parametrize(
    ("log_every", "save_every", "dispatched"),
    [
        (1, 50, 7),  # a logged step is looked at at once
        (50, 50, 8),  # any other while the next one runs
        (50, 7, 7),  # before it would be saved
    ],
)
def test_loop_stops_after_too_many_bad_steps_in_a_row(log_every, save_every, dispatched):
    recorder, drawn = Recorder(), []
    batches = (drawn.append(i) or batch for i, batch in enumerate(poisoned_from(5)))
    with pytest.raises(loop.TrainingDiverged, match=r"lower optim\.base_lr") as error:
        run_toy(batches, recorder, total_steps=50, log_every=log_every, save_every=save_every,
                limits=UNTROUBLED._replace(bad_steps=2))  # fmt: skip
    assert "3 steps in a row up to step 7" in str(error.value) and "\n" not in str(error.value)
    assert len(drawn) == dispatched
    counts = [(s, v["bad_steps"]) for s, v in recorder.logged if "bad_steps" in v]
    assert counts == [(5, 1), (6, 2), (7, 3)]
    assert all(np.isnan(v["loss"]) and np.isnan(v["grad_norm"]) for _, v in recorder.logged[-3:])
    assert recorder.saved == []


def test_a_short_streak_between_logged_steps_is_counted_and_forgiven():
    recorder = Recorder()
    batches = poisoned_from(5, until=7)
    state = run_toy(
        batches,
        recorder,
        total_steps=20,
        log_every=20,
        save_every=6,
        limits=UNTROUBLED._replace(bad_steps=2),
    )
    assert [(s, v.get("bad_steps")) for s, v in recorder.logged] == [(5, 1), (6, 2), (20, None)]
    assert int(state.bad_steps) == 0 and np.isfinite(state.params["w"]).all()


def test_the_count_of_bad_steps_survives_a_resume_and_saves_stay_finite(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / checkpoint.FOLDER, keep=9)
    saved = {}

    def save(step, state):
        checkpoints.save(step, state, {})
        saved[step] = parallel.to_host(state)

    method = toy_method()

    def train(state, start_step, total_steps):
        return loop.run(
            make_step(method), state, poisoned_from(5, start_step),
            loop.Span(start_step, total_steps, 8, KEY), limits=loop.Limits(3, 0.0, 100),
            saving=loop.Saving(2, save), reporting=Recorder().reporting(50),
        )  # fmt: skip

    train(start(method), 0, 6)
    checkpoints.wait()
    assert checkpoint.newest(tmp_path) == (6, {}, [])
    state = checkpoint.restore(tmp_path, 6, start(method))
    assert int(state.step) == 6 and int(state.bad_steps) == 2
    with pytest.raises(loop.TrainingDiverged, match="4 steps in a row up to step 8"):
        train(state, 6, 50)
    checkpoints.close()
    # What was saved amid the skipped steps is what the last good step left.
    assert list(saved) == [2, 4, 6]
    for name in ("params", "opt_state", "extra"):
        four, six = getattr(saved[4], name), getattr(saved[6], name)
        jax.tree.map(np.testing.assert_array_equal, four, six)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(six))


def unreadable_ones(every):
    """Batches of eight with one unreadable image in each `every`-th."""
    for i in range(99):
        batch = toy_batch(i)
        batch["bad"][3] = i % every == 0
        yield batch


def test_unreadable_images_are_counted_over_steps_and_resumes():
    recorder = Recorder()
    state = run_toy(unreadable_ones(2), recorder, total_steps=8, limits=loop.Limits(1, 0.25, 16))
    counts = [values.get("bad_images") for _, values in recorder.logged]
    assert counts == [1, 2, 3, 4] and int(state.bad_images) == 4
    # 4 of 16 images are allowed in the first epoch, a quarter of all drawn from then on.
    method = toy_method()
    step = make_step(method)
    state, metrics = step(state, parallel.split_batch(next(unreadable_ones(1))), KEY)
    assert int(metrics["bad_images"]) == int(state.bad_images) == 5


@pytest.mark.parametrize(
    ("num_images", "stops_at"),
    [
        (100, 12),  # the sixth of 96 images drawn; five of the hundred are allowed
        (20, 2),  # the second is more than 5 % of the twenty, and of the sixteen drawn
    ],
)
def test_loop_stops_at_too_many_unreadable_images(num_images, stops_at):
    recorder = Recorder()
    every = 2 if num_images == 100 else 1
    with pytest.raises(InputError, match=r"more than data\.max_bad_frac=0\.05") as error:
        run_toy(
            unreadable_ones(every),
            recorder,
            total_steps=50,
            limits=loop.Limits(1, 0.05, num_images),
        )
    assert "\n" not in str(error.value) and f"data set of {num_images}" in str(error.value)
    assert recorder.logged[-1][0] == stops_at


def test_waiting_for_data_is_seen():
    import time

    def slow():
        for i in range(99):
            time.sleep(0.25)
            yield toy_batch(i)

    recorder = Recorder()
    run_toy(slow(), recorder, total_steps=6)
    assert recorder.logged[-1][1]["data_wait_frac"] > 0.5


@pytest.mark.parametrize("devices", [1, 2])
def test_gradients_are_exchanged_where_there_is_somebody_to_exchange_them_with(devices):
    update = parallel.data_parallel_update(
        lambda state, batch, shared, over: (state, parallel.mean(batch)), jax.devices()[:devices]
    )
    lowered = update.lower(jnp.zeros(3), jnp.zeros((devices, 5)), jnp.zeros(()))
    assert ("all_reduce" in lowered.as_text()) == (devices > 1)
    batch = jnp.arange(5.0 * devices).reshape(devices, 5)
    _, mean = update(jnp.zeros(3), batch, jnp.zeros(()))
    np.testing.assert_array_equal(mean, batch.mean(0))
