"""Tests of the Python SDK, against a small Baton of their own (double.py) that follows the comments of the protos."""
