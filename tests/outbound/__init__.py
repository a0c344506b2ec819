"""Tests of the edge that talks to workers, over real sockets."""
