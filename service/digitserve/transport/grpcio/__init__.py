"""The transport on grpcio: the only code of the worker that imports grpc."""
