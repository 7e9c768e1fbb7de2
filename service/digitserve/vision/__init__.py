"""Image processing: grey conversion, polarity, background, connected components, and framing as in MNIST."""
