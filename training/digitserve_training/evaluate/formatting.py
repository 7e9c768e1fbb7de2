"""Numbers as text for the report, its charts and the table of results."""


def percent(share: float, decimals: int = 2) -> str:
    """Format a share as a percentage: 0.9965 becomes "99.65 %"."""
    return f"{share * 100:.{decimals}f} %"


def group_thousands(number: int, separator: str = ",") -> str:
    """Format an integer with a separator between groups of three digits: 10000 becomes "10,000"."""
    return f"{number:,}".replace(",", separator)
