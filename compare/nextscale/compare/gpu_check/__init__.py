"""One command's worth of proof on one machine: what runs there, whether it is right, and how fast it is."""
