"""Ways to approximate one layer or one channel group."""
