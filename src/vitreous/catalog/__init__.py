"""Cards and the registry that is read from them."""
