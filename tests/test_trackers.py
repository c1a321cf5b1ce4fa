"""Trackers beside metrics.jsonl: each line once, in every start, and none that stops a run."""

import math

import pytest

from dppmask_jax import trackers
from dppmask_jax.config import check as check_config
from dppmask_jax.config import defaults
from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field
from dppmask_jax.runs import metrics
from dppmask_jax.trackers.base import Tracker, TrackerKind

CONFIG = {"log": {"recorder": "shelf", "tags": " a, b/c ,"}, "mask": {"tau": 0.9}}


@pytest.fixture
def store(monkeypatch):
    """A store that outlives runs, as a server does: {run: [(what, …)]}, of a tracker that is added
    as any other is."""
    kept = {}

    def opened(opening):
        ident = opening.ident or f"{opening.target}-{len(kept)}"
        lines = kept.setdefault(ident, [])
        lines.append(("open", opening.tags, opening.config["mask"]["tau"], opening.restored_step))
        return Tracker(
            lambda step, values: lines.append(("write", step, values)),
            ident=ident,
            catch_up=lambda records: lines.append(("catch_up", records)),
            show=lambda step, paths: lines.append(("show", step, [path.name for path in paths])),
            close=lambda finished: lines.append(("close", finished)),
        )

    field = Field("", TEXT, "where", free="carried out")
    kind = TrackerKind("Recorder", opened, lambda log: log["recorder"], {"log.recorder": field})
    monkeypatch.setitem(trackers.TRACKERS, "recorder", kind)
    return kept


def test_a_resumed_run_is_the_same_one_and_is_shown_what_it_goes_on_from(tmp_path, store):
    log = metrics.MetricsLog(tmp_path, None, config=CONFIG)
    log.write(0, {"knn": 0.5})
    log.write(10, {"loss": 2.0, "grad_norm": math.inf, "bad_steps": 1})
    log.write(20, {"loss": math.nan})
    log.close()
    log = metrics.MetricsLog(tmp_path, 10, config=CONFIG)
    log.write(20, {"loss": 1.0})
    log.finish(20, [tmp_path / "masks.png"])
    log.close()
    ((ident, lines),) = store.items()
    assert ident == "shelf-0" and lines == [
        ("open", ("a", "b/c"), 0.9, None),
        ("catch_up", []),
        ("write", 0, {"knn": 0.5}),
        ("write", 10, {"loss": 2.0, "bad_steps": 1}),
        ("close", False),
        ("open", ("a", "b/c"), 0.9, 10),
        ("catch_up", [(0, {"knn": 0.5}), (10, {"loss": 2.0, "bad_steps": 1})]),
        ("write", 20, {"loss": 1.0}),
        ("show", 20, ["masks.png"]),
        ("close", True),
    ]


def test_a_run_that_is_begun_again_before_its_first_checkpoint_stays_the_same_one(tmp_path, store):
    log = metrics.MetricsLog(tmp_path, None, config=CONFIG)
    log.write(1, {"loss": 2.0})
    log.close()
    metrics.MetricsLog(tmp_path, None, config=CONFIG).close()
    assert list(store) == ["shelf-0"]
    metrics.MetricsLog(tmp_path, None, config=CONFIG).close()  # nothing is left of that one
    assert list(store) == ["shelf-0", "shelf-1"]


def test_a_run_without_the_field_has_no_such_tracker(tmp_path, store):
    log = metrics.MetricsLog(tmp_path, None, config={"log": {"recorder": ""}})
    log.write(1, {"loss": 2.0})
    log.close()
    assert not store and not (tmp_path / "trackers.json").exists()


@pytest.mark.parametrize("where", ["open", "catch_up", "write", "show", "close"])
def test_a_tracker_that_fails_stops_nothing_and_is_named_once(tmp_path, monkeypatch, where):
    def fail(*_):
        raise RuntimeError("the server\nis gone")

    def opened(opening):
        if where == "open":
            fail()
        calls = {"write": lambda *_: None} | {where: fail}
        return Tracker(**calls)

    kind = TrackerKind("Shelf", opened, lambda log: log["recorder"])
    monkeypatch.setitem(trackers.TRACKERS, "recorder", kind)
    said = []
    log = metrics.MetricsLog(tmp_path, None, said.append, CONFIG)
    for step in (1, 2, 3):
        log.write(step, {"loss": 2.0})
    log.finish(3, [])
    log.finish(3, [_png(tmp_path)])
    log.close()
    (line,) = said
    assert "Shelf" in line and "RuntimeError: the server is gone, test_trackers.py:" in line
    assert [record["step"] for record in metrics.read_metrics(tmp_path / "metrics.jsonl")] == [
        *(1, 2, 3)
    ]


def _png(folder):
    import PIL.Image

    PIL.Image.new("RGB", (2, 2)).save(folder / "x.png")
    return folder / "x.png"


def test_what_names_the_run_may_be_damaged(tmp_path, store):
    log = metrics.MetricsLog(tmp_path, None, config=CONFIG)
    log.write(1, {"loss": 2.0})
    log.close()
    (tmp_path / "trackers.json").write_text("[1")
    said = []
    metrics.MetricsLog(tmp_path, 1, said.append, CONFIG).close()
    assert list(store) == ["shelf-0", "shelf-1"]
    assert len(said) == 1 and "trackers.json cannot be read (JSONDecodeError" in said[0]


def config_with(**values):
    config = defaults("mae")
    config.data.source = "shapes"
    config.log.update(values)
    return config


@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path, folder):
    absent = f"no_such_package_of_a_tracker_{folder}"
    monkeypatch.syspath_prepend(tmp_path)
    if folder:
        (tmp_path / absent).mkdir()
    for name in ("wandb", "mlflow"):
        kind = trackers.TRACKERS[name]._replace(package=absent)
        monkeypatch.setitem(trackers.TRACKERS, name, kind)
        check_config(config_with())
        with pytest.raises(InputError) as error:
            check_config(config_with(**{name: "masks"}))
        assert str(error.value) == (
            f"config.log.{name}=masks needs the package {absent}, which is not installed: "
            f"pip install 'dppmask-jax[{name}]'"
        )


@pytest.mark.parametrize(
    "name,value",
    [
        *[("wandb", value) for value in ("a/b/c", "a/", "/a", "a#b", "a" * 129, "a\nb", 3)],
        *[("tags", value) for value in ("a,b;c", "a" * 65, "a\nb", ("a",))],
        ("mlflow", "a\nb"),
    ],
)
def test_names_that_a_store_would_refuse_are_refused_at_once(name, value):
    field = trackers.fields()[f"log.{name}"]
    assert not field.rule.holds(value)


@pytest.mark.parametrize(
    "name,value", [("wandb", ""), ("wandb", "a"), ("wandb", "me/a b"), ("tags", "a, b/c:1,ä")]
)
def test_names_that_fit(name, value):
    assert trackers.fields()[f"log.{name}"].rule.holds(value)
