"""Puts the examples' generated modules on the path before any test module imports them."""

import examples  # noqa: F401
