"""Metrics: declared once, recorded by workers in shared memory, read by the supervisor for Prometheus."""
