"""Language models on a paged pool, each in a module of its own: nothing is imported until it is asked for."""
