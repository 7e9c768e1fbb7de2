"""The supervisor process: ports, worker processes, restarts, CPU budget, HTTP endpoints."""
