"""Eager PyTorch models, written for reading: the truth that graphs are traced from and compared with."""
