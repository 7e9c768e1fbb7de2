"""Reading of numbers: an image of one or more numbers becomes lines of digits and separators.

    pixels ──page──▶ InkImage ──layout──▶ lines of pieces, ignored ink ──reader──▶ candidates ──network──▶ Reading

    layout:   mask ──rulings──▶ mask without ruled lines and boxes, cells
                   ──pieces──▶ connected components, without specks and other shapes, broken strokes joined
                   ──lines──▶ lines in reading order, or ──cells──▶ rows of cells

``page`` reduces an image to working resolution, finds its polarity and subtracts its background. ``layout`` and the modules
below it find what may be digits and separators, and how they are arranged; the network has not been asked yet. ``reader`` cuts
pieces into candidates, yields them for the network, and searches for the cutting that the network likes best.

All of it is generators that yield after at most about 10 ms of work, so that other requests can run in between; a worker's
thread advances them. No state is kept between requests. Boxes are in working pixels, except in a ``Reading``.
"""
