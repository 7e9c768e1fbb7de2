"""Native transport: HTTP/2 and gRPC on the worker's own thread, without grpcio."""
