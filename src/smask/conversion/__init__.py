"""Trained checkpoints to files: reading them tensor by tensor, storing them."""
