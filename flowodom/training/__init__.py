"""Training of the learned models, on rendered worlds and on raw video."""
