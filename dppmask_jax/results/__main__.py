"""One page from the results of evaluations and sweeps, next to the paper's figures.

    dppmask results FILE... --out results.md [--no_paper] [--keep FOLDER]

FILE is an eval_TASK.json of an evaluation or a sweep.json of a sweep; --no_paper leaves the
paper's rows, and what is said of them, out. The page says nothing of where the files lay; --keep
also writes a copy of each FILE, without the paths of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from dppmask_jax import command, whole_files
from dppmask_jax.results.page import page
from dppmask_jax.results.records import keep, load
from dppmask_jax.runs import bucket


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page; see the module's docstring."""
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax.results"),
        description="Writes one page from results of evaluations and sweeps.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="eval_TASK.json or sweep.json")
    parser.add_argument("--out", required=True, metavar="PAGE.md", help="the page")
    parser.add_argument("--keep", metavar="FOLDER", help="for copies without paths")
    parser.add_argument("--no_paper", action="store_true", help="without the paper's rows")
    args = parser.parse_args(argv)
    bucket.check_local(args.out, "--out")
    bucket.check_local(args.keep, "--keep")
    records = [load(path) for path in args.files]
    text = page(records, not args.no_paper)
    if args.keep:
        keep(records, args.keep)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(out, text)
    print(out)


if __name__ == "__main__":
    command.run_parsed(main)
