"""Evaluation of a trained network: calibration, corruption suite, report, results table."""
