"""Plans: the pure data that fixes every number of a deployment."""
