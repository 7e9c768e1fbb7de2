"""digitserve: handwritten digit classification over gRPC."""
