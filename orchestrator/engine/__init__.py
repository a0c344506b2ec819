"""The engine: carries out what the core decides. asyncio; `ports` is its only seam to the world."""
