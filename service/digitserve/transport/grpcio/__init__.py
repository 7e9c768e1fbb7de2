"""The transport on grpcio: its completion queue for the hot path, its thread pool for the rest."""
