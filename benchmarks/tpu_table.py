"""The tables of docs/speed.md that come from the TPU compiler. No TPU is needed.

    python benchmarks/tpu_table.py               # all cases
    python benchmarks/tpu_table.py --only ibot   # cases with this in their name or topology
    python benchmarks/tpu_table.py --missing     # only cases that docs/speed_tpu.json lacks
    python benchmarks/tpu_table.py --write       # no compilation: the tables from the JSON

Each case is a process of benchmarks/tpu.py, --jobs of them at a time (3 to 6 GB each). A case is
kept in docs/speed_tpu.json as soon as it is done, in place of what was kept of it before, and the
tables between the marks in docs/speed.md are written anew at the end. Status 1 if a case did what a
step must not do (`tpu.problems`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import marked, tpu  # noqa: E402

DOC, RESULTS = ROOT / "docs" / "speed.md", ROOT / "docs" / "speed_tpu.json"

MAE, IBOT = "configs/mae.py:dataset=imagenet1k", "configs/ibot.py:dataset=imagenet1k"
SHARED = " --config.parallel.mode=shard_map"
CASES = [
    # Every mask, at the documented batch.
    *[(f"{MAE},mask={mask}", "v5e:4x4") for mask in ("dpp", "random", "block")],
    *[(f"{IBOT},mask={mask}", "v5e:4x4") for mask in ("dpp", "random", "block", "attention")],
    # Every chip, from 4 to 256 of them.
    (f"{MAE},mask=dpp", "v4:2x2x4"),
    (f"{MAE},mask=dpp", "v5p:2x2x1"),
    (f"{MAE},mask=dpp", "v6e:2x4"),
    (f"{MAE},mask=dpp", "v5e:16x16"),
    (f"{MAE},mask=dpp", "v4:4x8x8"),
    (f"{MAE},mask=dpp --config.optim.accum_steps=2", "v5e:2x4"),
    (f"{IBOT},mask=dpp", "v4:2x2x4"),
    (f"{IBOT},mask=dpp", "v5p:2x2x1"),
    (f"{IBOT},mask=dpp", "v6e:2x4"),
    (f"{IBOT},mask=dpp", "v5e:16x16"),
    (f"{IBOT},mask=dpp --config.optim.accum_steps=2", "v5e:2x4"),
    # The state shared out.
    (f"{MAE},mask=dpp{SHARED}", "v5e:4x4"),
    (f"{MAE},mask=dpp{SHARED}", "v5e:16x16"),
    (f"{IBOT},mask=dpp{SHARED}", "v5e:16x16"),
    # Memory against time.
    (f"{MAE},mask=dpp --config.model.remat=True", "v5e:4x4"),
    (f"{MAE},mask=dpp --config.optim.accum_steps=4", "v5e:4x4"),
    (f"{MAE},mask=dpp --config.optim.accum_steps=4 --config.model.dtype=float32", "v5e:4x4"),
    (f"{IBOT},mask=dpp --config.model.remat=True", "v5e:4x4"),
    (f"{IBOT},mask=dpp --config.optim.accum_steps=4", "v5e:4x4"),
    (f"{IBOT},mask=dpp --config.optim.accum_steps=4 --config.model.dtype=float32", "v5e:4x4"),
    # The other recipes; those for imagenet100 are the same programs as those for imagenet1k.
    *[(f"configs/{name}.py:dataset=small,mask=dpp", "v5e:2x2") for name in ("mae", "ibot")],
    *[(f"configs/{name}.py:dataset=shapes,mask=dpp", "v5e:2x2") for name in ("mae", "ibot")],
    # Studies: the paper's tables are the programs above, but for AMT's masks in table 3.
    (f"{MAE},mask=amt", "v5e:4x4"),
    *[(f"configs/{name}.py:dataset=imagenette,mask=dpp", "v5e:2x2") for name in ("mae", "ibot")],
]


class Slice(NamedTuple):
    """Where a recipe is scaled to: the case that was compiled, the share of a chip's links that a
    sum over all chips can use, and virtual cores of the hosts, all together."""

    name: str
    title: str
    topology: str
    links: float
    host_cores: int | None


# A host of 8 v5e chips has 224 virtual cores (published).
SLICES = [
    Slice("v5e-8", f"{MAE},mask=dpp --config.optim.accum_steps=2", "v5e:2x4", 0.5, 224),
    Slice("v5e-256", f"{MAE},mask=dpp", "v5e:16x16", 1.0, 32 * 224),
    Slice("v5e-256", f"{MAE},mask=dpp{SHARED}", "v5e:16x16", 1.0, 32 * 224),
    Slice("v4-512", f"{MAE},mask=dpp", "v4:4x8x8", 1.0, None),
    Slice("v5e-8", f"{IBOT},mask=dpp --config.optim.accum_steps=2", "v5e:2x4", 0.5, 224),
    Slice("v5e-256", f"{IBOT},mask=dpp", "v5e:16x16", 1.0, 32 * 224),
    Slice("v5e-256", f"{IBOT},mask=dpp{SHARED}", "v5e:16x16", 1.0, 32 * 224),
]
FILE_BYTES = 108e3  # of a photograph, mean of 160 of 500 x 375 pixels
# Through the loader in a second, one core of an AMD EPYC (benchmarks/input.py): one crop, 2 + 10.
IMAGES_PER_CORE = {"mae": 765.0, "ibot": 392.0}


def run(title: str, topology: str) -> dict[str, Any]:
    """The report of a case, compiled in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        config, *changes = title.split()
        done = subprocess.run(
            [
                sys.executable,
                "benchmarks/tpu.py",
                f"--config={config}",
                *changes,
                f"--topology={topology}",
                f"--json={path}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if not path.exists():
            raise RuntimeError(f"{title} on {topology}: {done.stderr.strip()[-2000:]}")
        (found,) = json.loads(path.read_text())["cases"]
        return found | {"title": title, "versions": tpu.versions()}


def keep(found: dict[str, Any]) -> None:
    """Puts a report into the results, in place of the one of the same case, in CASES' order."""
    cases = {key(each): each for each in kept()} | {key(found): found}
    order = {case: number for number, case in enumerate(CASES)}
    ordered = sorted(cases.values(), key=lambda each: order.get(key(each), len(order)))
    RESULTS.write_text(json.dumps({"cases": ordered}, indent=1) + "\n")


def kept() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else []


def key(found: dict[str, Any]) -> tuple[str, str]:
    return found["title"], found["topology"]


# Tables.


def memory_table(cases: list[dict[str, Any]]) -> str:
    """Memory, exchange and cycles of each case, as Markdown."""
    heads = (
        "step", "chips", "images a chip", "GiB at its peak", "of", "arguments", "temporaries",
        "sent, of a sum of the gradients", "M cycles", "at worst", "ms", "images/s a chip",
    )  # fmt: skip
    rows = []
    for each in cases:
        where = f"{each['topology']} ({each['chips']})"
        if "does_not_fit" in each:
            rows.append([label(each), where, f"{each['images_per_chip']}", "does not fit"])
            rows[-1] += [""] * (len(heads) - len(rows[-1]))
            continue
        gib = {name: f"{size / tpu.GIB:.2f}" for name, size in each["memory"].items()}
        exchanged, share = tpu.sent(each)
        rows.append(
            [
                label(each),
                where,
                f"{each['images_per_chip']}",
                gib["peak"],
                gib["room"],
                gib["arguments"],
                gib["temporaries"],
                f"{exchanged / 1e6:.1f} MB, {share:.1%}",
                f"{each['cycles'] / 1e6:.1f}",
                f"{each['cycles_at_worst'] / 1e6:.1f}",
                f"{each['milliseconds']:.1f}",
                f"{1e3 * each['images_per_chip'] / each['milliseconds']:.0f}",
            ]
        )
    return marked.markdown(heads, rows)


def parts_table(cases: list[dict[str, Any]]) -> str:
    """Cycles of the parts of each case's step, and what no estimate covers, as Markdown."""
    parts = [name for name, _ in tpu.PARTS] + ["other"]
    heads = ("step", "chips", *parts, "selection at worst", "left out, by hand at most")
    rows = []
    for each in cases:
        if "does_not_fit" in each:
            continue
        bounds = each["bounds"]
        left_out = bounds["moved"] + bounds["sorts"] + bounds["gathers"]
        rows.append(
            [
                label(each),
                f"{each['topology']} ({each['chips']})",
                *[f"{each['parts'][name] / 1e6:.2f}" for name in parts],
                f"{each['parts_at_worst']['selection'] / 1e6:.2f}",
                f"{left_out / 1e6:.2f}",
            ]
        )
    return marked.markdown(heads, rows)


def scaling_table(cases: list[dict[str, Any]]) -> str:
    """What slices would do, by arithmetic alone, as Markdown."""
    heads = (
        "slice", "step", "ms of cycles", "ms of exchange", "images/s", "files, GB/s",
        "to a chip, MB/s", "cores for the input", "cores there are", "limit",
    )  # fmt: skip
    by_key = {key(each): each for each in cases}
    rows = []
    for part in SLICES:
        each = by_key.get((part.title, part.topology))
        if each is None or "does_not_fit" in each:
            continue
        rows.append([part.name, label(each), *scaled(each, part)])
    return marked.markdown(heads, rows)


def scaled(each: dict[str, Any], part: Slice) -> list[str]:
    """A row of `scaling_table`.

    Nothing overlaps: a step is its cycles, then the exchange.
    """
    chips = each["chips"]
    chip = tpu.CHIPS[part.topology.partition(":")[0]]
    exchange = 1e3 * tpu.sent(each)[0] / (part.links * chip.links)
    compute = each["milliseconds"]
    rate = 1e3 * each["batch"] / (compute + exchange)
    limit = "cycles of the step" if compute >= exchange else "exchange"
    per_core = IMAGES_PER_CORE["ibot" if "ibot" in each["title"] else "mae"]
    cores = rate / per_core
    if part.host_cores and cores > part.host_cores:
        limit = f"input: the hosts feed {part.host_cores * per_core:,.0f} images/s"
    return [
        f"{compute:.1f}",
        f"{exchange:.1f}",
        f"{rate:,.0f}",
        f"{rate * FILE_BYTES / 1e9:.2f}",
        f"{rate * each['input_bytes_per_image'] / chips / 1e6:.0f}",
        f"{cores:,.0f}",
        f"{part.host_cores:,}" if part.host_cores else "not known",
        limit,
    ]


def label(found: dict[str, Any]) -> str:
    """A case's name, short: its config and what is changed in it."""
    config, *changes = found["title"].split()
    config = config.removeprefix("configs/").replace(".py:dataset=", " ").replace(",mask=", " ")
    return ", ".join([config, *(change.split(".")[-1] for change in changes)])


def write_tables() -> None:
    """Writes the tables between their marks in docs/speed.md."""
    cases = kept()
    tables = {
        "memory": memory_table(cases),
        "parts": parts_table(cases),
        "scaling": scaling_table(cases),
    }
    marked.write(DOC, "benchmarks/tpu_table.py", tables)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="cases with this in their name or topology")
    parser.add_argument("--missing", action="store_true", help="cases without a result yet")
    parser.add_argument("--write", action="store_true", help="only write the tables")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time (default 2)")
    args = parser.parse_args()
    known = {key(each) for each in kept()}
    cases = [
        case
        for case in CASES
        if args.only in " ".join(case) and not (args.missing and case in known) and not args.write
    ]
    wrong = False
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run, *case) for case in cases]):
            found = done.result()
            keep(found)
            print(tpu.show(found), end="\n\n", flush=True)
            wrong |= bool(tpu.problems(found))
    write_tables()
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
