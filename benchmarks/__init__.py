"""Benchmarks: digitserve beside its floors and beside a good service of the usual kind. No test asserts their figures."""
