"""What the figures of task inside say: how each is read, and in one sentence what it shows here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax.analyses import soap
from dppmask_jax.analyses.attentive import LABELS as HEADS
from dppmask_jax.analyses.base import with_error
from dppmask_jax.analyses.segmentation import LABELS as PIXEL_HEADS
from dppmask_jax.evals.base import percent, points
from dppmask_jax.words import count

# Standard errors of the difference of independent numbers, from which two are told apart.
_APART = 2.0
Metrics = Mapping[str, Any]


class Figure(NamedTuple):
    """How a figure is read, and what it shows, from `Result.metrics`; None: nothing in numbers."""

    reads: str
    says: Callable[[Metrics], str] | None = None


class Words(NamedTuple):
    """Of a part: its heading, what it asks, and its figures by the names of their files."""

    title: str
    asks: str
    figures: Mapping[str, Figure]


def _between(one: tuple[float, float], other: tuple[float, float], words: Sequence[str]) -> str:
    """The words for a second number (value, error) that is below, above, or not told apart from the
    first, as if both were independent: records have no error of most differences."""
    difference = other[0] - one[0]
    if abs(difference) > _APART * math.hypot(one[1], other[1]):
        return words[difference > 0]
    return words[2]  # also where an error is not known


def _at(curve: Metrics, place: int) -> tuple[float, float]:
    return curve["mean"][place], curve["error"][place]


def _along(curve: Metrics, digits: int, words: Sequence[str]) -> str:
    """How a curve over depth changes from its first number to its last, as in "rises from …"."""
    change = _between(_at(curve, 0), _at(curve, -1), words)
    return f"{change} from {with_error(curve, 0, digits)} to {with_error(curve, -1, digits)}"


_MOVES = ("falls", "rises", "does not change beyond its error,")


def _soap_scores(m: Metrics) -> str:
    highest = f"The strongest direction scores {m['scores'][0]:.3f} ± {m['errors'][0]:.3f}"
    if not m["above"]:
        return f"{highest}; none is above {soap.HIGH}, so there is little position noise to remove."
    are, they_carry = ("is", "it carries") if m["above"] == 1 else ("are", "they carry")
    return (
        f"{highest}, and {m['above']} of {len(m['scores'])} directions {are} above {soap.HIGH}: "
        f"{they_carry} position noise. The projector takes away {percent(m['removed_variance'])} "
        "of the variance of the tokens."
    )


def _soap_maps(m: Metrics) -> str:
    shares = zip(m["ranks"][:3], m["shares"][:3], strict=True)
    named = ", ".join(f"component {rank} holds {percent(share)}" for rank, share in shares)
    return f"Of the variance of the tokens, {named}."


def _saliency(m: Metrics) -> str:
    iou, whole = m["masks"]["tokencut"]["IoU"], m["masks"]["whole"]["IoU"]
    better = _between(
        (whole["value"], whole["error"]),
        (iou["value"], iou["error"]),
        ("worse than", "better than", "not told apart from"),
    )
    return (
        f"The cut and the true object share {percent(iou['value'], iou['error'])} of the area that "
        f"either covers, {better} calling the whole image the object "
        f"({percent(whole['value'], whole['error'])})."
    )


def _saliency_examples(m: Metrics) -> str:
    uncut = f"; {count(m['uncut'], 'image')} could not be cut at all" if m["uncut"] else ""
    return f"Objects fill {percent(m['foreground'])} of the {m['images']:,} images{uncut}."


def _segmentation(m: Metrics) -> str:
    heads = {name: m["heads"][name] for name in PIXEL_HEADS if name in m["heads"]}
    found = ", ".join(
        f"{percent(of['miou'], of['miou_error'])} with {PIXEL_HEADS[name]}"
        for name, of in heads.items()
    )
    return (
        f"Mean overlap with the true areas of the classes is {found}, between "
        f"{percent(m['heads']['commonest class']['miou'])} for calling every pixel the commonest "
        f"class and {percent(m['heads']['limit of patches']['miou'])}, the most that patches of "
        "this size allow."
    )


def _attentive(m: Metrics) -> str:
    cells = ", ".join(
        f"{HEADS[name]} {percent(share, m['error'][name])}" for name, share in m["accuracy"].items()
    )
    gain = _between(
        (0.0, 0.0),
        (m["gain"], m["gain_error"]),
        (
            "attending loses against the mean",
            "tokens know more than their mean says",
            "attending is not told apart from the mean",
        ),
    )
    return f"Accuracy: {cells}; chance is {percent(m['chance'])}: {gain}."


def _distance(m: Metrics) -> str:
    return (
        f"The distance {_along(m['distance'], 2, _MOVES)} pixels between the first block and the "
        f"last, where attention that is the same everywhere would reach "
        f"{m['uniform_distance']:.1f}; the dependence on the looking patch "
        f"{_along(m['nmi'], 4, _MOVES)}."
    )


def _frequencies(m: Metrics) -> str:
    change = _along(
        m["highest"],
        2,
        ("falls, so the map gets smoother,", "rises, so it gets sharper,", _MOVES[2]),
    )
    said = f"From the embedding to the last block the finest frequency {change}"
    if "noise" not in m:
        return (
            f"{said}. The accuracy under noise was not measured: it needs labels of training and "
            "of validation images."
        )
    noise = m["noise"]
    worst = int(np.argmax(noise["drop"]["mean"]))
    lost = _at(noise["drop"], worst)
    clean = percent(noise["clean"]["mean"], noise["clean"]["error"])
    if lost[0] <= 0:
        return f"{said}; noise of no frequency lowers the accuracy of {clean}."
    apart = _between((0.0, 0.0), lost, ("", "", ", not told apart from no loss"))
    return (
        f"{said}; of an accuracy of {clean}, noise at {noise['frequencies'][worst]:g} radians a "
        f"pixel costs the most, {points(*lost)}{apart}."
    )


def _spectra(m: Metrics) -> str:
    tokens, images = m["tokens_level"]["effective_rank"], m["images_level"]["rankme"]
    return (
        f"Behind the final norm the tokens of an image fill about {with_error(tokens, -1, 1)} "
        f"dimensions (effective rank), {with_error(tokens, 0, 1)} at the embedding; mean tokens of "
        f"images fill {with_error(images, -1, 1)} (RankMe), {with_error(images, 0, 1)} at the "
        "embedding."
    )


def _diversity(m: Metrics) -> str:
    said = (
        f"The cosine of the tokens of one image {_along(m['tokens'], 3, _MOVES)} from the "
        f"embedding to the last block, that of different images "
        f"{_along(m['images_level'], 3, _MOVES)}"
    )
    if "heads" in m:
        said += f"; that of the heads of the last block is {with_error(m['heads'], -1, 3)}"
    return f"{said}."


def _layers(m: Metrics) -> str:
    curve = m["tokens"]["patches"]["ridge"]
    best, last = int(np.argmax(curve["mean"])), len(curve["mean"]) - 1
    found = f"Ridge on the mean patch token is best at depth {best} of {last}, "
    found += percent(*_at(curve, best))
    if best != last:
        words = ("above", "above", "not told apart from")
        apart = _between(_at(curve, last), _at(curve, best), words)
        found += (
            f", {apart} the {percent(*_at(curve, last))} of the last; the best depth was chosen on "
            "these very images, which flatters it"
        )
    return f"{found}; chance is {percent(m['chance'])}."


def _shift(m: Metrics) -> str:
    found = m["classifiers"]["ridge"]  # an own head is left out with a projection
    original, changed, drop = (
        (found[name]["mean"], found[name]["error"]) for name in ("original", "changed", "drop")
    )
    return (
        f"Of {percent(*original)} accuracy (ridge), {percent(*changed)} is left on changed images, "
        f"a drop of {points(*drop)}."
    )


WORDS = {
    "soap": Words(
        "Position noise",
        "Tokens should say what is in a patch. Part of them says where the patch is instead, "
        "whatever the picture. This part looks for it in the principal directions of the patch "
        "tokens, and writes a projector that damps it, `soap.safetensors`: "
        "`--config.projection=…/soap.safetensors` measures the encoder with it.",
        {
            "soap_scores.png": Figure(
                "Each dot is a direction, sorted by its score (SI): 1 means that it responds to "
                "the position alone, the dashed line is what chance gives, and directions above "
                "the dotted line are taken for position noise.",
                _soap_scores,
            ),
            "soap_depths.png": Figure("The highest score at each depth."),
            "soap_maps.png": Figure(
                "Each row is one direction: in how many images it responds at each place, and its "
                "mean response; where the maps of real images and of synthetic ones without "
                "content are alike, the direction follows the place and not the picture.",
                _soap_maps,
            ),
            "soap_responses.png": Figure(
                "Single images and how each of their patches responds: position noise shows where "
                "rows look alike although their images do not.",
            ),
        },
    ),
    "saliency": Words(
        "Objects without training",
        "Each image is cut in two by the likeness of its patch tokens alone (TokenCut), and the "
        "part taken for the object is held against the true one.",
        {
            "saliency_scores.png": Figure(
                "Further right is better; F-beta weighs precision above recall at the best "
                "threshold, IoU is the overlap with the true object, accuracy the share of pixels "
                "on the right side.",
                _saliency,
            ),
            "saliency.png": Figure(
                "Each row is an image: the eigenvector that is cut is bright on the supposed "
                "object, then the cut and the truth; the last row is the mean of all images.",
                _saliency_examples,
            ),
        },
    ),
    "segmentation": Words(
        "A class for each patch",
        "The encoder stays as it is; a simple head on top says of each patch token which class it "
        "belongs to, and counts for all pixels of the patch.",
        {
            "segmentation_classes.png": Figure(
                "Each dot is the overlap (intersection over union) of the predicted and the true "
                "area, first the mean over classes, then classes one by one; further right is "
                "better.",
                _segmentation,
            ),
            "segmentation_maps.png": Figure(
                "Images, what each head makes of their patches, and the truth, a colour a class.",
            ),
        },
    ),
    "attentive": Words(
        "What patch tokens know beyond their mean",
        "A small head that chooses which patches to look at classifies images, beside heads that "
        "see the mean of all patch tokens.",
        {
            "attentive_accuracy.png": Figure(
                "Share of validation images classified rightly, a row a head; a first row further "
                "right than the others means that classes stand in some patches and drown in the "
                "mean.",
                _attentive,
            ),
            "attentive_maps.png": Figure(
                "What the head looks at in some images: bright patches decide about the class.",
            ),
        },
    ),
    "attention": Words(
        "Where attention looks",
        "In every block each patch gathers from others, and weights say from which. This part "
        "measures how far away they are, and whether different patches look at different places.",
        {
            "attention_depth.png": Figure(
                "Left, pixels between a patch and what it attends to, by block: low is local, the "
                "dotted line is attention that is even. Right, how much it depends on the patch "
                "that looks: 0 where all look at the same places, 1 where each looks at its own. "
                "Dots are single heads.",
                _distance,
            ),
            "attention_maps.png": Figure(
                "What is attended to in some images, by block: one bright spot means that few "
                "patches get all attention, an outline that attention follows objects.",
            ),
        },
    ),
    "frequencies": Words(
        "Coarse or fine",
        "Tokens over the image make a map, which can be smooth (low frequencies: shapes, "
        "surfaces) or change from patch to patch (high frequencies: edges, texture).",
        {
            "frequencies.png": Figure(
                "The strength of the finest frequency against the mean, by depth, as a logarithm: "
                "the lower, the smoother. Where there are labels a second panel has the accuracy "
                "lost to noise of one frequency: a peak is what the classifier relies on.",
                _frequencies,
            )
        },
    ),
    "spectra": Words(
        "How many dimensions are used",
        "A token has as many numbers as the encoder is wide, but they may repeat one another. "
        "Singular values tell how many dimensions are filled.",
        {
            "spectra.png": Figure(
                "Above, how fast the share of further dimensions falls, for the tokens of an image "
                "and for mean tokens of images; below, how many dimensions are filled, by depth "
                "up to the last block: "
                "few means that tokens, or images, are much alike.",
                _spectra,
            )
        },
    ),
    "diversity": Words(
        "How alike things are inside",
        "Cosines say how alike two vectors are: 1 is the same direction, 0 nothing in common.",
        {
            "diversity.png": Figure(
                "By depth: how alike heads of a block are, a token before and after a block, the "
                "tokens of one image, and different images. Near 1 heads do the same, a block "
                "changes little, tokens or images are hard to tell apart.",
                _diversity,
            )
        },
    ),
    "layers": Words(
        "Which depth tells classes apart",
        "Simple classifiers read the tokens at every depth; the best depth need not be the last.",
        {
            "layers.png": Figure(
                "Accuracy by depth, of neighbours (k-NN) and of a linear classifier (ridge); the "
                "dotted line is chance. A line that falls at the end says that the last blocks "
                "serve the pre-training rather than the classes.",
                _layers,
            )
        },
    ),
    "shift": Words(
        "Changed images",
        "Classifiers of the original images are tested on changed ones, such as copies in another "
        "style: what relies on texture loses more than what relies on shape.",
        {
            "shift.png": Figure(
                "Accuracy on the original and on the changed images; the steeper the line, the "
                "more is lost.",
                _shift,
            )
        },
    ),
    "tsne": Words(
        "A map of tokens",
        "Tokens of images of several classes, laid out so that like ones are near.",
        {
            "tsne.png": Figure(
                "Each dot is a token, each colour the class of its image. Groups of one colour "
                "say that tokens tell the classes apart, mixed ones that they do not; distances "
                "between groups and their sizes mean nothing.",
            )
        },
    ),
}
