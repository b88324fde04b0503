"""Each family's checkpoint files: how they tell their sizes."""
