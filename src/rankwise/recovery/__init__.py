"""What is done after surgery: bias correction, recalibration, refit, training."""
