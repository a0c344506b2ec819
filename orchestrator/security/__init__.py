"""Edge of trust: credentials and step tokens."""
