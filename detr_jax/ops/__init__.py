"""Functions of arrays, without parameters; they import nothing else of the package."""
