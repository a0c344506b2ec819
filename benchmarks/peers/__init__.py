"""Programs of peers. They run in an environment of their own and import nothing of Baton but `load` and `works`."""
