"""Where requests enter: a handler for each RPC, and the gRPC transport that calls the handlers."""
