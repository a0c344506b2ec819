"""The pure core: what a run is, which transitions are legal, what comes next. Standard library only."""
