"""Where requests enter: the handlers of each RPC, and the gRPC transport below them."""
