"""Puts the examples' generated modules on the path before any test module imports them.

This folder has no `__init__.py`, on purpose: as a package named `examples` it would hide the one that it tests.
"""

import examples  # noqa: F401
