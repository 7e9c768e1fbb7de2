"""Synthetic images: simulated scans, digits and characters drawn as strokes or glyphs, and images that show no digit."""
