"""The edge that tells what happens: spans by OTLP and structured logs. It listens, and changes nothing."""
