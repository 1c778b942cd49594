"""Pure tensor-to-tensor mathematics in float64."""
