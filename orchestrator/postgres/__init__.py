"""Everything that is kept in Postgres: schema, stores, and an embedded server. The only importer of asyncpg.

SQL lives in `migrations/` and `queries/`; Python holds none.
"""
