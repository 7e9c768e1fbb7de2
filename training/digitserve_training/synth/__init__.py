"""Synthetic images: scans on paper, pen strokes, and images that show no digit."""
