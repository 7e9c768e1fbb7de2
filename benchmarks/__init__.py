"""Benchmarks of digitserve, of its floors and of a comparable service. No test asserts their figures."""
