"""The target of a CPU: a bundle's graphs optimised for its processor, over one file of packed weights."""
