"""The server of Baton. See docs/architecture.md."""
