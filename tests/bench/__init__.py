"""Benchmarks that compare digitserve with its floors and with a good service of the usual kind; never part of a test."""
