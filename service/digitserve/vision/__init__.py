"""Pixels: grey conversion, background, polarity, connected components, and framing as in MNIST."""
