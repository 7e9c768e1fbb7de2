"""Datasets: their files, labels, splits and fingerprints."""
