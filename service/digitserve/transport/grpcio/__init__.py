"""The transport on grpcio: the only code of the worker that knows gRPC."""
