"""The cases of `tidegate bench limits`: one module per family, each a function from a Bench to a Case."""
