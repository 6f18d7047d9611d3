"""What a model does with each parameter, read from the jaxpr of its forward pass."""
