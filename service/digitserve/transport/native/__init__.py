"""gRPC over HTTP/2 on the worker's one thread, without grpcio."""
