"""The HTML page of an evaluation on image files: self-contained, in the style of the report of a run.

``report`` calls ``render``; ``pictures.html.jinja`` defines the layout. Does not import TensorFlow.
"""

import io
from collections.abc import Iterator, Sequence

from PIL import Image

from digitserve_training.evaluate.formatting import percent
from digitserve_training.evaluate.key_figures import KeyFigure, grouped
from digitserve_training.evaluate.page import data_url, make_environment
from digitserve_training.evaluate.pictures.figures import REPORTED, PictureEvaluation
from digitserve_training.evaluate.pictures.table import WITHOUT_SET
from digitserve_training.evaluate.pictures.thumbnails import Mistake
from digitserve_training.evaluate.scores import interval


def render(evaluation: PictureEvaluation, mistakes: Sequence[Mistake]) -> str:
    """Render the page; equal arguments give an equal page.

    Args:
        evaluation: all results.
        mistakes: the first of its mistakes, with their images.
    """
    environment = make_environment()
    environment.filters |= {"png": png_url, "points": lambda share: f"{share * 100:+.2f}"}
    template = environment.get_template("pictures/pictures.html.jinja")
    return template.render(
        evaluation=evaluation,
        key_figures=[*_key_figures(evaluation)],
        mistakes=mistakes,
        verdicts=REPORTED,
        without_set=WITHOUT_SET,
    )


def _key_figures(evaluation: PictureEvaluation) -> Iterator[KeyFigure]:
    overall, others = evaluation.overall, evaluation.others
    if overall.num_images:
        low, high = interval(overall.num_right, overall.num_images)
        yield KeyFigure(
            "Accuracy",
            percent(overall.accuracy),
            f"The label is right for {grouped(overall.num_right)} of {grouped(overall.num_images)} images, whatever the "
            f"verdict. 95 % confidence interval (Wilson): {percent(low)} to {percent(high)}.",
        )
        yield KeyFigure(
            "Wrong and ACCEPTED",
            percent(overall.wrong_accepted),
            f"{grouped(overall.num_wrong_accepted)} images: mistakes that the service does not mark. "
            f"{percent(overall.accepted_among_wrong)} of the wrong answers are ACCEPTED.",
        )
        yield KeyFigure(
            "Right and ACCEPTED",
            percent(overall.right_accepted),
            f"{grouped(overall.num_right_accepted)} images. {percent(overall.accepted_among_right)} of the right answers "
            "are ACCEPTED.",
        )
        yield KeyFigure(
            "Confidence minus accuracy",
            f"{overall.overconfidence * 100:+.2f} points",
            "Mean confidence minus accuracy, in percentage points: above 0 the network is too confident. A blank image has "
            "confidence 0.",
        )
    if others.num_images:
        num_accepted = sum(one.accepted for one in others.judged)
        yield KeyFigure(
            "ACCEPTED without a digit",
            f"{grouped(num_accepted)} of {grouped(others.num_images)}",
            "Images that are not a single digit; none of them should be ACCEPTED.",
        )


def png_url(image: Image.Image) -> str:
    """Return an image as the value of HTML's ``src`` attribute."""
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return data_url(png.getvalue())
