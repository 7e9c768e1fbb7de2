"""Masks packed into Python's integers, one bit per pixel: a step on a whole image is a dozen operations, without numpy.

``components`` calls it on the worker's thread. Each row has ``stride`` bits, more than its pixels, so that pixels at the end of
a row have no neighbours in the next one. No state is kept.
"""


def min_components(bits: int, stride: int) -> int:
    """Return the number of components of a packed mask minus that of its holes: its Euler characteristic.

    Source: Gray, "Local properties of binary images in two dimensions", 1971: corners minus edges plus pixels.
    """
    beside, below = bits | bits << 1, bits | bits << stride
    corners = beside | beside << stride
    return corners.bit_count() - beside.bit_count() - below.bit_count() + bits.bit_count()


def num_runs(bits: int, step: int) -> int:
    """Count the runs of pixels of a packed mask, each pixel ``step`` bits after the one before."""
    return (bits & ~(bits << step)).bit_count()


def neighbours(bits: int, stride: int) -> int:
    """Return the pixels of which at least one of the eight neighbours is set."""
    beside = bits << 1 | bits >> 1
    rows = beside | bits
    return beside | rows << stride | rows >> stride


def project_columns(bits: int, height: int, stride: int) -> int:
    """Return the OR of all rows of a packed mask. Each step halves the number of rows."""
    while height > 1:
        half = (height + 1) // 2
        bits = bits & ((1 << half * stride) - 1) | bits >> half * stride
        height = half
    return bits


def dilate(bits: int, stride: int) -> int:
    """Grow a packed mask by one pixel in all eight directions."""
    across = bits | bits << 1 | bits >> 1
    return across | across << stride | across >> stride


def erode(bits: int, stride: int) -> int:
    """Shrink a packed mask by one pixel in all eight directions; what is outside of it counts as clear."""
    across = bits & bits << 1 & bits >> 1
    return across & across << stride & across >> stride


def flood_fill(seed: int, mask: int, stride: int, steps: int) -> tuple[int, int]:
    """Grow a seed within a packed mask to the whole component that contains it.

    Args:
        seed: pixels of the component.
        mask: the component and any others.
        stride: bits per row.
        steps: most steps.

    Returns:
        The component, and the steps that are left; below 0 if they were too few.
    """
    while steps >= 0:
        steps -= 1
        grown = dilate(seed, stride) & mask
        grown |= mask & ~(mask + grown)  # the carry of the addition fills each run to its end along the row
        if grown == seed:
            break
        seed = grown
    return seed, steps
