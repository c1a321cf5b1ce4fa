"""Pre-trains and evaluates at every point of a grid, such as DPPMask's mask ratios (arXiv
2303.12736, figure 4) or thresholds (tables 1 and 2).

    dppmask sweep --config=mae:dataset=shapes --eval=eval:task=linear --workdir=runs/sweep \\
        --grid="mask.ratio=0.5,0.6,0.75 mask.tau=0.85,0.9,1.0"

--config and --eval are the --config of `dppmask train` and of `dppmask eval`, with overrides such
as --config.epochs=5.0 and --eval.solver=ridge. The grid gives fields of --config, each with its
values between commas: numbers, words, or any Python literal, such as
mask.ratio=(0.0,0.5),(0.0,0.7) for iBOT. A tau of 1 is random masking. Points that differ in `seed`
alone are averaged in the figure.

Several evaluations of each point are --eval, --eval2, --eval3 and so on up to --eval6, each with
overrides of its own, such as

        --eval2=eval:task=attention --eval2.images=300

The figure has a panel for each; the first stands for the point where there is room for one.

WORKDIR receives a folder for each point, which these commands can work in as well, sweep.json and
figures/sweep.png. The same command goes on where it was interrupted, and so does one with more
values in the grid, further evaluations or other seeds of them; what is finished is left alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from absl import flags

from dppmask_jax import command as command_line
from dppmask_jax import joining, parallel, whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.sweeps import points, records, summary
from dppmask_jax.sweeps.grid import Point, grid_points, words

_USUAL = "python -m dppmask_jax.sweep"
_MORE = tuple(f"eval{number}" for number in range(2, 7))  # flags of further evaluations


def sweep(
    config, eval_config, grid: str, folder: str | Path, command: str = "", beside: Sequence = ()
) -> Path:
    """Pre-trains and evaluates at every point of a grid, or goes on where that was interrupted.

    Args:
      config: a config such as configs/mae.py makes.
      eval_config: a config such as configs/eval.py makes.
      grid: see `sweeps.grid.grid_points`.
      folder: receives the points' workdirs, sweep.json and figures/sweep.png.
      command: what was typed, to be written down.
      beside: configs like `eval_config` of further evaluations.

    Returns:
      The path of sweep.json: "grid", and for each finished point of "points" its "name", "values",
      "evaluation" (what eval_TASK.json holds), "pretraining" (the last value of each metric) and,
      where there are further evaluations, "beside": {TASK: what its eval_TASK.json holds}.

    Raises:
      InputError: the grid, the config of a point or of an evaluation, the data or the folder is
        wrong; nothing was trained.
      loop.TrainingDiverged: too many steps of a pre-training in a row were not finite.
      Stopped: by a signal, or because nothing could be saved.
    """
    folder = Path(folder)
    planned = grid_points(config, grid)
    evaluations = _check_configs(planned, (eval_config, *beside))
    path = folder / "sweep.json"
    record = records.new(config, evaluations, planned, folder, command)
    old = records.read(path)
    done = records.done(old, record, planned, evaluations, folder)
    finished = records.finished(old, done, evaluations)
    left = [point for point in planned if point.name not in finished]
    for name, of_one in evaluations.items():
        missing = [point for point in left if name not in done[point.name]]
        points.check_data(missing, of_one, folder, _flag(list(evaluations).index(name)))
    points.check_folders(left, folder)
    parallel.wait_for_all("the sweep's folder was read")

    def write():
        record["points"] = [finished[point.name] for point in planned if point.name in finished]
        if parallel.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            whole_files.write_json(path, record)

    write()
    for number, point in enumerate(planned, 1):
        was_finished = point.name in finished
        _say(
            f"point {number} of {len(planned)}: {words(point.values)}, in {folder / point.name}"
            + (", finished before" if was_finished else "")
        )
        if not was_finished:
            there = done[point.name]
            finished[point.name] = _run(point, evaluations, there, folder / point.name, command)
            write()
    if parallel.is_main():
        drawn = summary.draw(folder, record["points"])
        for line in summary.histories(record["points"]):
            print(line)
        print(f"\n{summary.table(record['points'])}\n\nresult  {path}\nfigure  {drawn}", flush=True)
    return path


def _flag(number: int) -> str:
    """The flag of an evaluation."""
    return f"--{('eval', *_MORE)[number]}" if number <= len(_MORE) else f"evaluation {number + 1}"


def _check_configs(planned: Sequence[Point], evaluations: Sequence) -> dict[str, Any]:
    """{name of its records: config} of the evaluations."""
    found = points.check_evaluations(
        {_flag(number): config for number, config in enumerate(evaluations)}
    )
    for point in planned:
        points.check_config(point.config, f"--grid at {words(point.values)}")
    return found


def _run(
    point: Point, evaluations: Mapping[str, Any], done: Mapping, folder: Path, command: str
) -> dict[str, Any]:
    """The record of a point."""
    found = points.run(point, evaluations, done, folder, command)
    if not parallel.is_main():
        return {}
    return {
        "name": point.name,
        "values": json.loads(json.dumps(point.values)),
        "pretraining": points.pretraining(folder),
        **records.of_evaluations(found),
    }


def _say(line: str) -> None:
    if parallel.is_main():
        print(line, flush=True)


def _without_gap(configs: Sequence) -> list:
    """The configs of further evaluations; InputError where one is None and a later one is not, for
    messages count them."""
    given = [config for config in configs if config is not None]
    if None in configs[: len(given)]:
        raise InputError(
            f"--{_MORE[configs.index(None)]} is missing, and a later one is there: number further "
            "evaluations without a gap"
        )
    return given


def main() -> None:
    """Sweeps; see the module's docstring."""
    config = command_line.define_config_flag("config", "RECIPE[:key=value,...] to pre-train with.")
    evaluation = command_line.define_config_flag("eval", "eval:task=TASK to evaluate with.")
    beside = [
        command_line.define_config_flag(name, "eval:task=TASK of a further evaluation.")
        for name in _MORE
    ]
    grid = flags.DEFINE_string("grid", "", "FIELD=VALUE,VALUE ... of --config.")
    folder = flags.DEFINE_string("workdir", None, "Where the sweep is written; resumed if there.")
    processes = command_line.define_process_flags()

    def run(_):
        if config.value is None:
            raise InputError(command_line.missing_config("config", "mae:dataset=shapes"))
        if evaluation.value is None:
            raise InputError(command_line.missing_config("eval", "eval:task=linear"))
        if not folder.value:
            raise InputError("--workdir is missing: name a folder, such as runs/sweep")
        further = _without_gap([flag.value for flag in beside])
        joining.initialize(*processes())
        typed = shlex.join(command_line.words(_USUAL))
        sweep(config.value, evaluation.value, grid.value, folder.value, typed, further)

    command_line.run(run, _USUAL, __doc__, "put the grid in quotes")


if __name__ == "__main__":
    main()
