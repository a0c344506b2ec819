"""Benchmarks: what Baton costs, beside what the disk and the wire cost on the same machine in the same minutes."""
