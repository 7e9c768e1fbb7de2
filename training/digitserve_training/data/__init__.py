"""Data sets: their files, labels, splits and fingerprints."""
