"""Many updates as one: means, robust rules, products of factors, server optimisers."""
