"""The shipped networks on handwriting styles that MNIST does not contain, drawn as strokes."""

import numpy as np
import pytest

from digitserve.inference.bundle import read_bundle
from digitserve.inference.model_folder import list_versions
from digitserve.inference.session import Session
from digitserve.types import Ink
from digitserve.vision.framing import frame
from digitserve_training.synth.strokes import DIGIT_STROKES, draw_character
from support.digits import MODELS

SLASHED_ZERO = (*DIGIT_STROKES["0"][0], ((3.4, 0.2), (0.6, 3.8)))
STYLES = [(label, style) for label, styles in DIGIT_STROKES.items() for style in styles] + [("0", SLASHED_ZERO)]


@pytest.mark.parametrize("name", ["digits", "digits-int8"])
def test_digits_of_several_countries_are_read(name: str) -> None:
    """Ones with a flag or a foot, crossed sevens, open fours, curled nines, flat threes and slashed zeros: at most one in
    50 drawings is misread, with thin and thick pens.
    """
    session = Session(read_bundle(MODELS / name / str(max(list_versions(MODELS, name)))))
    generator = np.random.default_rng(1)
    drawings = [(label, style) for label, style in STYLES for _ in range(20)]
    framed = [frame(draw_character(style, generator), Ink.LIGHT_ON_DARK).pixels for _, style in drawings]

    answers = session.run(np.stack(framed)[..., None]).probabilities.argmax(axis=1)

    wrong = [label for (label, _), answer in zip(drawings, answers, strict=True) if label != str(answer)]
    assert len(wrong) <= len(drawings) / 50, wrong
