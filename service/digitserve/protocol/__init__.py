"""The gRPC contract: names and codes, bytes to requests and answers to bytes, errors to status codes."""
