"""An evaluation of the reader as text for the terminal. ``report`` calls ``render``."""

from collections.abc import Sequence

from digitserve_training.evaluate.formatting import align_table, percent
from digitserve_training.evaluate.numbers.figures import Figures, NumberEvaluation

MAX_NAMED = 10
"""Mistakes and failures that are named; numbers.json names all of them."""

WITHOUT_SET = "(no set)"

COLUMNS = ("images", "exact", "lines exact", "characters right", "found, right", "false")
LEGEND = """'exact': the whole text of the image is right. 'characters right': 1 minus the edit distance per character. 'found,
right' and 'false' compare digits by their boxes, where these are known: shares of the digits that the images show."""


def render(evaluation: NumberEvaluation) -> str:
    """Return all figures as text."""
    groups = {"all": evaluation.overall} | {name or WITHOUT_SET: one for name, one in evaluation.by_group.items()}
    if len(evaluation.by_group) == 1:
        del groups["all"]
    rows = [("", *COLUMNS), *((name, *cells(figures)) for name, figures in groups.items())]
    parts = [f"{evaluation.model} on {evaluation.source}", align_table(rows), LEGEND]
    if evaluation.mistakes:
        mistakes = [f"{one.sample.name}: {flat(one.shown)}  read as  {flat(one.read)}" for one in evaluation.mistakes]
        parts.append(_name_some(f"{len(mistakes)} images with mistakes:", mistakes))
    if evaluation.failures:
        failures = [f"{one.sample.name}: {one.reason}" for one in evaluation.failures]
        parts.append(_name_some(f"{len(failures)} images were not read and are in no figure:", failures))
    return "\n\n".join(parts)


def cells(figures: Figures) -> tuple[str, ...]:
    """Return the figures of a row of the table."""
    digits = (percent(figures.digits_right), percent(figures.digits_false)) if figures.digits else ("-", "-")
    return (
        str(figures.num_images),
        percent(figures.exact),
        percent(figures.exact_lines),
        percent(figures.characters_right),
        *digits,
    )


def flat(text: str) -> str:
    """Return a text on one line, its lines separated by slashes."""
    return "/".join(text.splitlines()) or "nothing"


def _name_some(title: str, lines: Sequence[str]) -> str:
    num_hidden = len(lines) - MAX_NAMED
    more = [f"  and {num_hidden} more, listed in numbers.json"] if num_hidden > 0 else []
    return "\n".join([title, *(f"  {line}" for line in lines[:MAX_NAMED]), *more])
