"""What the benchmarks of all.py found on one machine, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import hardware, marked

Row = tuple[str, str, str]
SELECT = "select, tau 0.9"


def read(out: Path) -> dict[str, Any]:
    """{benchmark: its results} of a folder, where one that failed has left none."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


def table(found: dict[str, Any]) -> str:
    """The hardware in a sentence, then what was measured, as Markdown."""
    machine = found["hardware"]
    title = f"{machine['devices']} x {machine['device_kind']}; {hardware.line(machine)}."
    parts = (steps, ibot, selection, attention, loader)
    heads = ("measured", "median (range)", "against")
    return f"{title}\n\n{marked.markdown(heads, [row for part in parts for row in part(found)])}"


def rate(images: float, ms: dict[str, float]) -> str:
    """Images a second, of the times that so many take."""

    def number(end):
        speed = 1e3 * images / ms[end]
        return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"

    return f"{number('median')} ({number('max')} to {number('min')}) images/s"


def steps(found: dict[str, Any]) -> Iterator[Row]:
    for name, one in found.items():
        if name.startswith("train_step"):
            yield from step(one)


def step(found: dict[str, Any]) -> Iterator[Row]:
    title = (
        f"MAE ViT-{found['size']}/16, batch {found['batch']}, {found['dtype']}, "
        f"{found['mask']} masks"
    )
    for name, values in found["contestants"].items():
        against = ""
        if name == "ours":
            against = (
                f"{found['share_of_matmul_rate']:.0%} of the rate of a large product, "
                f"{found['matmul_flop_per_sec'] / 1e12:.3g} TFLOP/s"
            )
            if found["times_faster"]:
                against = f"{found['times_faster']:.2f} times the better of PyTorch; {against}"
        yield f"{title}: {name}", rate(found["batch"], values["ms"]), against


def ibot(found: dict[str, Any]) -> Iterator[Row]:
    if "ibot_step" not in found:
        return
    found = found["ibot_step"]
    (ms,) = (ms for name, ms in found["ms"].items() if name.startswith("whole step"))
    title = f"iBOT ({found['preset']}), batch {found['batch']}, {found['dtype']}"
    yield title, rate(found["batch"], ms), ""


def selection(found: dict[str, Any]) -> Iterator[Row]:
    """Images that a selection takes in a second, and its share of the step with DPP masks."""
    if "selector" not in found:
        return
    selector, against = found["selector"], ""
    ms = selector["ms_per_image"][SELECT]
    if "train_step_dpp" in found:
        dpp = found["train_step_dpp"]
        of_image = dpp["contestants"]["ours"]["ms"]["median"] / dpp["batch"]
        against = (
            f"{ms['median'] / of_image:.2%} of MAE's step with DPP masks, batch {dpp['batch']}"
        )
    yield f"selection, 196 patches, tau 0.9, batch {selector['batch']}", rate(1, ms), against
    sizes = [one for one in found.get("selector_sizes", ()) if one["tau"]]
    for one in sizes:
        ms = one["ms"]
        yield (
            f"selection, {one['patches']:,} patches, tau {one['tau']:g}",
            f"{ms['median']:.3g} ({ms['min']:.3g} to {ms['max']:.3g}) ms an image",
            f"{ms['median'] / sizes[0]['ms']['median']:.1f} times that of {sizes[0]['patches']}",
        )


def attention(found: dict[str, Any]) -> Iterator[Row]:
    found = found.get("attention", {"layers": {}})
    for layer, rivals in found["layers"].items():
        ours = rivals["ours"]["ms"]["median"]
        for name, values in rivals.items():
            ms = values["ms"]
            times = "" if name == "ours" else f"{ms['median'] / ours:.2f} times as long as ours; "
            yield (
                f"attention of MAE's {layer}, batch {found['batch']}, {found['dtype']}: {name}",
                f"{ms['median']:.3g} ({ms['min']:.3g} to {ms['max']:.3g}) ms",
                f"{times}error {values['error']:.1e}",
            )


def loader(found: dict[str, Any]) -> Iterator[Row]:
    for views, contestants in found.get("input", {"images_per_sec": {}})["images_per_sec"].items():
        for one in contestants:
            cores = "1 core" if one["cores"] == 1 else f"{one['cores']} cores"
            speed = f"{one['median']:,.0f} ({one['min']:,.0f} to {one['max']:,.0f}) images/s"
            yield f"input, {views}, {cores}: {one['name']}", speed, ""
