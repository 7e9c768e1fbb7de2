"""Requests between admission and answer: which request is next, how its images are prepared, how a batch runs."""
