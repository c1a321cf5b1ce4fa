import errno
import io
import json
import os
import struct

import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto.event_pb2 import Event

from dppmask_jax.errors import InputError
from dppmask_jax.runs import metrics
from dppmask_jax.trackers import tensorboard


def steps(folder):
    return [record["step"] for record in metrics.read_metrics(folder / "metrics.jsonl")]


def test_reopening_cuts_back_to_the_restored_step(tmp_path):
    log = metrics.MetricsLog(tmp_path, None)
    for step in (0, 10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    log = metrics.MetricsLog(tmp_path, 20)
    assert steps(tmp_path) == [0, 10, 20]
    log.write(30, {"loss": 7.0})
    log.close()
    records = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert steps(tmp_path) == [0, 10, 20, 30] and records[-1] == {"step": 30, "loss": 7.0}


def test_a_run_that_starts_anew_keeps_no_old_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "knn": 0.5}\n')
    metrics.MetricsLog(tmp_path, None).close()
    assert steps(tmp_path) == []


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2 of"):
        metrics.read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "1", '{"loss": 1.0}', '{"step": "1"}', '{"step": 1.5}', '{"step": true}', "{" * 9),
        *("[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"a\udcff": 1}', "__import__('os')"),
    ],
)
def test_what_is_no_record_is_named_and_nothing_is_done_with_it(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f'{{"step": 0}}\n{line}\n'.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="line 2 of") as error:
        metrics.read_metrics(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert metrics.read_metrics(path) == [{"step": 1, "loss": 0.5}]
    metrics.MetricsLog(tmp_path, 5).close()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    log = metrics.MetricsLog(tmp_path, None)
    log.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    log.write(2, {})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: 1 / 0) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "lr": 0.1,
    }


def test_tensorboard_events_are_written(tmp_path):
    log = metrics.MetricsLog(tmp_path, None)
    log.write(1, {"loss": 0.25})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes() and np.float32(0.25).tobytes() in events.read_bytes()


def test_tensorboard_shows_the_config_and_the_figures(tmp_path, monkeypatch):
    picture = tmp_path / "masks.png"
    PIL.Image.new("RGBA", (6, 4), "red").save(picture)
    log = metrics.MetricsLog(tmp_path, None, config={"mask": {"tau": 0.9}})
    log.finish(7, [picture])
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    shown = [event for event in events_of(events) if event.summary.value]
    text, image = (event.summary.value[0] for event in shown)
    assert b'    "tau": 0.9' in text.tensor.string_val[0] and text.tag == "config/text_summary"
    assert image.tag == "figures/masks" and (image.image.width, image.image.height) == (6, 4)
    assert PIL.Image.open(io.BytesIO(image.image.encoded_image_string)).getpixel((0, 0))[0] == 255
    assert [event.step for event in shown] == [0, 7]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    said = []
    log = metrics.MetricsLog(tmp_path, None, said.append)
    monkeypatch.setattr(tensorboard._Events, "write", full)
    log.finish(7, [picture])
    log.close()
    assert said == [
        "step 7: tensorboard/ cannot be written (No space left on device); it ends here, "
        "metrics.jsonl goes on"
    ]


def events_of(path):
    """The events of a file: each is its length, a checksum, itself and another."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_other_processes_write_nothing(tmp_path):
    log = metrics.MetricsLog(None, None)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_progress_without_a_terminal_is_about_twenty_lines(capsys):
    progress = metrics.Progress(0, 1000)
    for step in range(1, 1001):
        progress.update(step, {"loss": 0.5, "images_per_sec": 123.4})
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert 18 <= len(lines) <= 22
    assert lines[-1].startswith("step 1000/1000  loss 0.5000  123 images/s  ETA 00:00")


def test_slow_steps_are_shown_by_the_clock(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    progress = metrics.Progress(0, 1000)
    for step in range(1, 31):
        now[0] += 6.0
        progress.beat(step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["step 2/1000  ETA 1:39:48", "step 4/1000  ETA 1:39:36"]
    assert len(lines) == 15
    now[0] += 90_000.0  # a day later a line comes after a hundredth of the time
    for step in range(31, 331):
        now[0] += 6.0
        progress.beat(step)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch):
    read, written = os.pipe()
    with open(written, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        progress = metrics.Progress(0, 10)
        progress.say("heard")
        os.close(read)
        progress.say("lost")
        progress.update(10, {"loss": 0.5, "images_per_sec": 1.0})


def test_progress_of_other_processes_is_silent(capsys):
    progress = metrics.Progress(0, 10, enabled=False)
    progress.update(10, {"loss": 0.5, "images_per_sec": 1.0})
    assert capsys.readouterr() == ("", "")
    progress.say("an unreadable image")
    progress.close()
    assert capsys.readouterr() == ("", "an unreadable image\n")


def test_progress_in_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = metrics.Progress(0, 10)
    progress.update(5, {"loss": 0.5, "images_per_sec": 123.4})
    progress.say("k-NN")
    progress.update(10, {"loss": 0.25, "images_per_sec": 123.4})
    progress.close()
    out, err = capsys.readouterr()
    assert "k-NN" in out and "10/10" in err and "loss 0.2500, 123 images/s" in err
