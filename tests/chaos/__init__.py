"""Real faults under load: campaigns against real processes, the evidence that these leave, and what must hold of it."""
