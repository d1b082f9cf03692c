"""The weighted SE(3) fit: closed form, robust refinement, keyframe window, covariance."""
