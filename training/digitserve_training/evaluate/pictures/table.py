"""An evaluation on image files as text for the terminal. ``report`` calls ``render``."""

from collections.abc import Iterable, Sequence

from digitserve_training.evaluate.formatting import align_table, percent
from digitserve_training.evaluate.pictures.figures import REPORTED, Figures, PictureEvaluation

MAX_FAILURES = 10
"""Files without an answer that are named; pictures.json names all of them."""

WITHOUT_SET = "(no set)"

COLUMNS = ("images", "right", "right, ACC", "wrong, ACC", "ACC of right", "ACC of wrong", "conf - acc")
LEGEND = """ACC: ACCEPTED. 'right, ACC' and 'wrong, ACC' are shares of all images in the row, 'ACC of right' and 'ACC of wrong'
shares of the right and of the wrong ones. 'conf - acc' is the mean confidence minus the accuracy, in percentage points."""
VERDICTS = tuple(verdict.name for verdict in REPORTED)


def render(evaluation: PictureEvaluation) -> str:
    """Return all figures as text."""
    parts = [f"{evaluation.model} on {evaluation.folder}"]
    if evaluation.overall.num_images:
        parts += [_digits(evaluation), _confusion(evaluation), LEGEND]
    if evaluation.others.num_images:
        groups = {"all": evaluation.others} | (evaluation.others_by_set if [*evaluation.others_by_set] != [""] else {})
        parts.append(
            align_table(
                [
                    ("not a single digit", "images", *VERDICTS),
                    *((name or WITHOUT_SET, str(one.num_images), *_verdicts(one)) for name, one in groups.items()),
                ]
            )
        )
    if evaluation.failures:
        parts.append(_failures(evaluation))
    return "\n\n".join(parts)


def _digits(evaluation: PictureEvaluation) -> str:
    """Return one table of all files, of each set, if there are sets, and of each label."""
    groups = [("all", {"all": evaluation.overall}), ("label", evaluation.by_label)]
    if [*evaluation.by_set] != [""]:
        groups.insert(1, ("set", evaluation.by_set))
    rows: list[Sequence[str]] = []
    for title, figures_of in groups:
        rows += [(), (title, *COLUMNS, *VERDICTS[1:])] if title != "all" else [("", *COLUMNS, *VERDICTS[1:])]
        rows += [(name or WITHOUT_SET, *_cells(figures)) for name, figures in figures_of.items()]
    return align_table(rows)


def _cells(figures: Figures) -> Iterable[str]:
    yield str(figures.num_images)
    yield percent(figures.accuracy)
    yield percent(figures.right_accepted)
    yield percent(figures.wrong_accepted)
    yield percent(figures.accepted_among_right) if figures.num_right else "-"
    yield percent(figures.accepted_among_wrong) if figures.num_wrong else "-"
    yield f"{figures.overconfidence * 100:+.2f}"
    yield from _verdicts(figures)[1:]


def _verdicts(figures: Figures) -> tuple[str, ...]:
    return tuple(str(figures.num_by_verdict[verdict]) for verdict in REPORTED)


def _confusion(evaluation: PictureEvaluation) -> str:
    """Return the confusion matrix, with dots for zeros; without a column for blank images if there are none."""
    counts = evaluation.confusion
    num_shown = len(evaluation.labels) + any(line[-1] for line in counts)
    return align_table(
        [
            ("label \\ answer", *(*evaluation.labels, "blank")[:num_shown]),
            *(
                (label, *(str(count) if count else "·" for count in line[:num_shown]))
                for label, line in zip(evaluation.labels, counts, strict=True)
            ),
        ]
    )


def _failures(evaluation: PictureEvaluation) -> str:
    shown = [f"  {one.picture.file}: {one.reason}" for one in evaluation.failures[:MAX_FAILURES]]
    num_hidden = len(evaluation.failures) - len(shown)
    more = [f"  and {num_hidden} more, listed in pictures.json"] if num_hidden else []
    return "\n".join([f"{len(evaluation.failures)} files got no answer and are in no figure:", *shown, *more])
