"""Deterministic simulation: real engines on virtual time, a simulated database, network and workers, drawn faults."""
