"""Export of a run to a verified bundle: parity, quantisation, precision."""
