"""docs/comparison.md: studies, their tables, and what they say in plain words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from dppmask_jax.comparing import describing, verdicts
from dppmask_jax.comparing.describing import Description
from dppmask_jax.comparing.outcomes import Measure, Outcome
from dppmask_jax.comparing.statistics import LEVEL, POWER, Difference, differences
from dppmask_jax.words import count

NONE = "–"  # a cell without a number
_INTRODUCTION = """\
# Does it matter what is hidden?

Made by `dppmask compare`; do not edit. Runs of a study differ in their masks alone:
those of one seed have the same initial weights, images, crops and noise. So each kind of masks is
compared with its base seed by seed."""
_READING = f"""\
## How to read it

The first row of a table is the base: its mean, and its standard deviation σ over seeds. A cell
below has the mean difference to it, with a 95 % interval, which says how far the difference would
move with other seeds and other test images. In a column marked † the scores of single images are
not known, and it holds for these images alone. Few seeds know their own spread badly, so that of
all masks of a column is taken, or their own where that is larger. Of masks whose trainings vary
three times as much as those of the others, 95 % are then rather 90. Training images, model and
schedule stay as they are: of others, these numbers say nothing.

p is corrected for the number of masks in a column (Holm). A difference has a verdict where it is
below {LEVEL:g}: if no masks of a column differed, at most one such column in twenty would have one.
An interval that leaves out 0 without a verdict is one of many that were looked at. "None larger
than" is not "equal": it is the larger end of the interval, up to which the runs rule out nothing.
The last row is the smallest true difference that {100 * POWER:g} % of such studies would find."""


_SUMMARY = (
    "<details><summary>All intervals: over seeds alone, over images alone (a bootstrap that draws "
    "an image with all of its seeds), and over both</summary>"
)


def page(
    descriptions: Mapping[str, Description],
    outcomes: Mapping[str, Sequence[Outcome]],
    figures: Mapping[str, str] | None = None,
) -> str:
    """The page in Markdown, the same for any order of a study's outcomes.

    Args:
      descriptions: of the studies by name, in the order in which they are shown.
      outcomes: of each study.
      figures: {study: path of its forest plot from the page}.

    Raises:
      ValueError: an outcome is of another study, or as `statistics.differences` says.
    """
    parts = [_INTRODUCTION, _READING]
    for name, description in descriptions.items():
        figure = (figures or {}).get(name)
        parts += _section(description, outcomes.get(name, ()), figure)
    return "\n\n".join(parts) + "\n"


def _section(description: Description, outcomes, figure: str | None) -> list[str]:
    describing.check(description, outcomes)
    found = {
        (one.method, one.evaluation, one.masker): one
        for one in differences(outcomes, description.base)
    }
    parts = [f"## {description.title}"]
    if description.sentences:
        parts.append(" ".join(description.sentences))
    if found:
        parts.append(_in_short(description, found))
        if figure:
            parts.append(f"![Differences to {_base(description)}, with intervals]({figure})")
    for method, label in description.methods.items():
        of_method = [one for one in outcomes if one.method == method]
        if of_method:
            parts += [f"### {label}", _table(description, method, of_method, found)]
            parts += _findings(description, method, found)
            parts += _all_numbers(description, method, found)
    missing = _missing(description, outcomes)
    return [*parts, missing] if missing else parts


def _base(description: Description) -> str:
    return description.maskers[description.base]


def _in_short(description: Description, found: Mapping[tuple, Difference]) -> str:
    """How many differences have which verdict."""
    kinds = [verdicts.kind(one, description.measures[one.evaluation]) for one in found.values()]
    tested = [kind for kind in kinds if kind not in ("one seed", "no spread")]
    base = _base(description)
    if not tested and "no spread" in kinds:
        return f"No difference to {base} is tested: those of all seeds are the same."
    if not tested:
        return f"No difference to {base} is tested yet: no masks have two seeds in common with it."
    told = [
        f"{kinds.count(kind)} {'is' if kinds.count(kind) == 1 else 'are'} {kind}"
        for kind in verdicts.TOLD
        if kind in kinds
    ]
    rest = tested.count("none")
    if rest:
        told.append(f"{rest} cannot be told from none")
    text = f"Of {count(len(tested), 'difference')} to {base}, {_listed(told)}."
    one_better = any(measure.better for measure in description.measures.values())
    if one_better and "better" not in kinds:
        text += f" No masks were found to be better than {base}."
    return text


def _table(description: Description, method: str, outcomes, found) -> str:
    """Rows are maskers, columns evaluations."""
    names = [
        name
        for name in description.measures
        if any(outcome.evaluation == name for outcome in outcomes)
    ]
    lost = description.lost.get(method, {})
    heading = ["masks", *["no patch of the object visible, %"] * bool(lost)]
    heading += [_heading(description.measures[name], method, name, found) for name in names]
    rows = []
    for masker, label in description.maskers.items():
        row = [label]
        if lost:
            row.append(f"{100 * lost[masker]:.1f}" if masker in lost else NONE)
        for name in names:
            measure = description.measures[name]
            if masker == description.base:
                values = _values(outcomes, masker, name)
                row.append(_level(values, measure))
            else:
                one = found.get((method, name, masker))
                wanted = len(description.seeds)
                row.append(NONE if one is None else _cell(one, measure, wanted))
        # The base stands first, wherever the study has it.
        rows.insert(0 if masker == description.base else len(rows), row)
    last = [_detectable(method, name, found, description.measures[name]) for name in names]
    if any(cell != NONE for cell in last):
        rows.append(["*smallest difference that would be found*", *[NONE] * bool(lost), *last])
    return _markdown(heading, rows)


def _heading(measure: Measure, method: str, name: str, found) -> str:
    mark = verdicts.dagger(found, method, name)
    unit = ", %" if measure.in_percent else ""
    better = {"higher": "", "lower": " (lower is better)", None: " (neither end is better)"}
    return f"{measure.words}{unit}{mark}{better[measure.better]}"


def _values(outcomes, masker: str, evaluation: str) -> list[float]:
    """In the order of seeds."""
    chosen = [
        (outcome.seed, outcome.value)
        for outcome in outcomes
        if (outcome.masker, outcome.evaluation) == (masker, evaluation)
    ]
    return [value for _, value in sorted(chosen)]


def _level(values: Sequence[float], measure: Measure) -> str:
    if not values:
        return NONE
    text = verdicts.level(statistics.fmean(values), measure)
    if len(values) > 1:
        text += f", σ {verdicts.level(statistics.stdev(values), measure)}"
    return f"{text} ({count(len(values), 'seed')})"


def _cell(one: Difference, measure: Measure, wanted: int) -> str:
    mean = verdicts.signed(one.mean, measure)
    seeds = "" if len(one.seeds) == wanted else f" ({count(len(one.seeds), 'seed')})"
    kind = verdicts.kind(one, measure)
    if kind == "one seed":
        return f"{mean}{seeds}<br>no verdict"
    if kind == "no spread":
        return f"{mean}{seeds}<br>the same in all seeds"
    text = f"{mean} {_interval(one.over_both, measure)}{seeds}<br>p {verdicts.chance(one.adjusted)}"
    if kind == "none":
        return f"{text}, none larger than {verdicts.size(verdicts.largest(one), measure)}"
    return f"{text}, **{kind}**"


def _interval(ends: tuple[float, float], measure: Measure) -> str:
    low, high = (verdicts.signed(end, measure) for end in ends)
    return f"[{low}, {high}]"


def _detectable(method: str, name: str, found, measure: Measure) -> str:
    sizes = [
        one.detectable
        for key, one in found.items()
        if key[:2] == (method, name) and one.detectable is not None
    ]
    if not sizes:
        return NONE
    ends = dict.fromkeys(verdicts.size(size, measure) for size in (min(sizes), max(sizes)))
    return " to ".join(ends)


def _findings(description: Description, method: str, found) -> list[str]:
    """A line for each evaluation: who is better, who worse, and what the others can at most be."""
    lines = []
    for name, measure in description.measures.items():
        rows = [
            found[method, name, masker]
            for masker in description.maskers
            if (method, name, masker) in found
        ]
        if rows:
            lines.append(f"- {measure.words}: {_finding(description, measure, rows)}")
    return ["\n".join(lines)] if lines else []


def _finding(description: Description, measure: Measure, rows: Sequence[Difference]) -> str:
    of_kind: dict[str, list[Difference]] = {}
    for one in rows:
        of_kind.setdefault(verdicts.kind(one, measure), []).append(one)
    parts = []
    for kind in verdicts.TOLD:
        if kind in of_kind:
            named = (
                f"{description.maskers[one.masker]} "
                f"({verdicts.with_unit(verdicts.signed(one.mean, measure), measure)})"
                for one in of_kind[kind]
            )
            parts.append(f"{kind} than {_base(description)}: {_listed(list(named))}.")
    if "none" in of_kind:
        rest = of_kind["none"]
        largest = max(rest, key=verdicts.largest)
        who = f"{len(rest)} of {len(rows)} cannot be told from none"
        if len(rows) == 1:
            who = description.maskers[largest.masker]
        parts.append(f"{who}: {verdicts.verdict(largest, measure)}.")
    for kind in ("one seed", "no spread"):
        if kind in of_kind:
            labels = [description.maskers[one.masker] for one in of_kind[kind]]
            parts.append(f"{_listed(labels)}: {verdicts.verdict(of_kind[kind][0], measure)}.")
    return " ".join(part[0].upper() + part[1:] for part in parts)


def _all_numbers(description: Description, method: str, found) -> list[str]:
    """Every interval by what it is over, folded away."""
    heading = ["evaluation", "masks", "seeds", "images", "difference", "over seeds", "over images"]
    heading += ["over both", "p", "p of Holm", "smallest that would be found"]
    rows = []
    for name, measure in description.measures.items():
        for masker, label in description.maskers.items():
            one = found.get((method, name, masker))
            if one is not None:
                rows.append([measure.words, label, *_numbers(one, measure)])
    if not rows:
        return []
    return [_SUMMARY, _markdown(heading, rows), "</details>"]


def _numbers(one: Difference, measure: Measure) -> list[str]:
    def shown(value, write):
        return NONE if value is None else write(value)

    intervals = (one.over_seeds, one.over_images, one.over_both if one.images else None)
    return [
        ", ".join(map(str, one.seeds)),
        shown(one.images, "{:,}".format),
        verdicts.signed(one.mean, measure),
        *(shown(ends, lambda ends: _interval(ends, measure)) for ends in intervals),
        *(shown(p, verdicts.chance) for p in (one.p, one.adjusted)),
        shown(one.detectable, lambda size: verdicts.size(size, measure)),
    ]


def _missing(description: Description, outcomes) -> str:
    """What is wanted and not there: whole runs, then evaluations of runs."""
    done: dict[tuple[str, str, int], set[str]] = {}
    for one in outcomes:
        done.setdefault((one.method, one.masker, one.seed), set()).add(one.evaluation)
    lacking: dict[str, dict[str, list[int]]] = {}  # of runs "", of an evaluation its name
    for method, of_method in description.methods.items():
        for masker, label in description.maskers.items():
            for seed in description.seeds:
                found = done.get((method, masker, seed))
                names = (
                    [""] if found is None else [n for n in description.measures if n not in found]
                )
                for name in names:
                    where = lacking.setdefault(name, {})
                    where.setdefault(f"{of_method} with {label}", []).append(seed)
    wanted = len(description.methods) * len(description.maskers) * len(description.seeds)
    parts = []
    for name in ("", *description.measures):
        if name in lacking:
            of_what = f"of {description.measures[name].words}" if name else ""
            number = sum(map(len, lacking[name].values()))
            what = of_what or f"{number} of {count(wanted, 'run')}"
            parts.append(f"Still missing, {what}: {'; '.join(_with_seeds(lacking[name]))}.")
    return " ".join(parts)


def _with_seeds(of_runs: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        f"{run}, seed{'s' * (len(seeds) > 1)} {_listed(list(map(str, seeds)))}"
        for run, seeds in of_runs.items()
    ]


def _listed(texts: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(heading), "|" + "---|" * len(heading), *map(line, rows)])
