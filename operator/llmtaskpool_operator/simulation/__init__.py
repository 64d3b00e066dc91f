"""The simulator: the product's own law over a virtual clock and a model of the pods. Pure."""
