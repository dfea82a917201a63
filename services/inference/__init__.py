"""The inference service: one engine per model, behind gRPC and a broker."""
