"""Edge to callers: the gRPC server, its layers, and the error table."""
