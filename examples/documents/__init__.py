"""Agents that read texts; `documents.yaml` joins them into the workflow `read-document`."""
