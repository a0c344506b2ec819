"""`make demo`: Baton with real workers, real input and real trouble, from nothing to checked results."""
