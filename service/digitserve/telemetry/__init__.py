"""Metrics: declared once, recorded by workers in shared memory, collected by the supervisor."""
