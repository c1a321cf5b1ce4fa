"""The one training step, of any method. Knows no task and no loop."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dppmask_jax import optim, parallel
from dppmask_jax.methods import chunks
from dppmask_jax.methods.base import Method, TrainState, Turn


def init_state(method: Method, key) -> TrainState:
    """The state before the first step, on the host's default device."""

    def build(key):
        params, extra = method.init(key)
        zero = jnp.zeros((), jnp.int32)
        opt_state = tuple(turn.optimizer.tx.init(_trained(turn, params)) for turn in method.turns)
        return TrainState(zero, params, opt_state, extra, zero, zero)

    return jax.jit(build)(key)


def make_step(
    method: Method, *, accum_steps: int = 1, devices=None, mode: str = "pmap"
) -> Callable:
    """The training step, compiled for all devices.

    Args:
      devices, mode: see `parallel.data_parallel_update`.

    Returns:
      `step(state, batch, seed_key) -> (state, metrics)`; `batch` from `parallel.split_batch`,
      with or without "wish" int32 (b,), of which the metrics have the largest of all processes.
      What `before_step` makes of the batch, the step's key and `extra` are the same for all turns,
      which follow each other. Gradients, metrics and `aux` of a turn are averaged over the
      micro-batches and the devices, then its optimiser updates what it trains; `after_step` follows
      the last turn. Where in any turn the loss, the gradient norm or a parameter after the update
      is not finite, the step is skipped: only the counts change.
    """

    in_chunks = parallel.on_tpu(devices)

    def prepared(batch, key):
        batch = dict(batch)
        wish = parallel.largest(jnp.max(batch.pop("wish", 0)))
        batch = method.before_step(batch, key)
        bad = parallel.total(jnp.sum(batch["bad"], dtype=jnp.int32))
        return batch, (wish, bad)

    def step(state: TrainState, batch, seed_key, over: parallel.Over):
        key = jax.random.fold_in(seed_key, state.step)
        batch, (wish, bad) = over.each(prepared)(batch, key)
        params, opt_states, metrics, aux, checks = state.params, (), {}, {}, []
        for turn, opt_state in zip(method.turns, state.opt_state, strict=True):
            gradients = functools.partial(_gradients, turn, accum_steps, in_chunks)
            find = over.mean(gradients, _trained(turn, params))
            grads, (loss, of_turn, aux_of_turn) = find(batch, params, state.extra, key, state.step)
            params, opt_state, of_update, is_finite = _updated(
                turn, opt_state, params, grads, loss, state.step
            )
            opt_states = (*opt_states, opt_state)
            metrics, aux = metrics | of_turn | of_update, aux | aux_of_turn
            checks.append(is_finite)
        finite = functools.reduce(operator.and_, checks)
        with jax.named_scope("optimizer"):
            extra = method.after_step(params, state.extra, aux, state.step)
        metrics = {**metrics, **method.report(extra, aux, state.step)}
        updated = (params, opt_states, extra)
        unchanged = (state.params, state.opt_state, state.extra)
        with jax.named_scope("optimizer"):
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, unchanged)
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        counts = {"bad_steps": bad_steps, "bad_images": state.bad_images + bad}
        metrics = {**metrics, **counts, "wish": wish}
        return TrainState(state.step + 1, *kept, **counts), metrics

    return parallel.data_parallel_update(step, devices, mode)


def _trained(turn: Turn, params):
    """The parameters that a turn updates."""
    if turn.trains is None:
        return params
    return {name: params[name] for name in sorted(turn.trains)}


def _with_trained(turn: Turn, params, trained):
    """All parameters, with `trained` in place of those that a turn updates."""
    return trained if turn.trains is None else {**params, **trained}


def _gradients(turn: Turn, accum_steps: int, in_chunks: bool, batch, params, extra, key, step):
    """(gradient of what the turn trains, (loss, metrics, aux)), means over the micro-batches."""
    parts = accum_steps
    if in_chunks and turn.logits_bytes:
        images = len(batch["index"]) // accum_steps
        parts *= images // chunks.size_for(images, turn.logits_bytes)

    def loss_of(trained, micro):
        trained = optim.stopped(trained, turn.optimizer.frozen)
        every = _with_trained(turn, params, trained)
        return turn.loss(every, extra, micro, key, step)

    grad_fn = jax.value_and_grad(loss_of, has_aux=True)

    def of_micro_batch(micro):
        (loss, (metrics, aux)), grads = grad_fn(_trained(turn, params), micro)
        return grads, (loss, metrics, aux)

    if parts == 1:
        return of_micro_batch(batch)

    def add(total, micro):
        grads, rest = of_micro_batch(micro)
        return jax.tree.map(jnp.add, total, grads), rest

    micros = jax.tree.map(lambda x: x.reshape((parts, -1, *x.shape[1:])), batch)
    zeros = jax.tree.map(jnp.zeros_like, _trained(turn, params))
    total, rest = jax.lax.scan(add, zeros, micros)
    mean = functools.partial(jnp.mean, axis=0)
    return jax.tree.map(lambda x: x / parts, total), jax.tree.map(mean, rest)


def _updated(turn: Turn, opt_state, params, grads, loss, step):
    """(params, opt_state, metrics, whether loss, gradient norm and parameters are finite)."""
    grad_norm = optax.tree.norm(grads)
    with jax.named_scope("optimizer"):
        trained = _trained(turn, params)
        updates, opt_state = optax.with_extra_args_support(turn.optimizer.tx).update(
            grads, opt_state, trained, train_step=step
        )
        lr = turn.optimizer.learning_rate(step)
        trained = optax.apply_updates(trained, jax.tree.map(lambda u: lr * u, updates))
        # The update of finite gradients can overflow, and checkpoints hold finite parameters alone.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & _all_finite(trained)
    values = {"loss": loss, "lr": lr, "grad_norm": grad_norm}
    metrics = {f"{name}_{turn.name}" if turn.name else name: values[name] for name in values}
    return _with_trained(turn, params, trained), opt_state, metrics, finite


def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
