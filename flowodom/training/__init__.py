"""Training on rendered worlds: pairs of images with exact flow, losses, and the loop that any task runs in."""
