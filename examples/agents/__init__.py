"""Agents that orchestrate agents: a planner, those that it delegates to, and a person who has the last word."""
