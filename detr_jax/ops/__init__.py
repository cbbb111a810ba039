"""Array functions without parameters, independent of the rest of the package."""
