"""Programs that the benchmark starts, each a process of its own that speaks in lines."""
