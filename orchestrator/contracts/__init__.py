"""Contracts: descriptors, types, bindings and expressions. Protobuf, no I/O."""
