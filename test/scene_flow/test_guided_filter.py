"""Values smoothed along surfaces that lie beside each other."""

import numpy as np

from flowodom.scene_flow.guided_filter import smooth


def test_smoothing_keeps_to_its_surface():
    guide = np.full((40, 40), 0.5, dtype=np.float32)
    guide[:, 20:] = 1.0
    values = np.zeros((40, 40), dtype=np.float32)
    values[:, 20:] = 2.0
    noisy = values + np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    weight = np.ones((40, 40), dtype=np.float32)
    weight[10:14, 25:30] = 0
    noisy[10:14, 25:30] = 50.0
    found = smooth(noisy, weight, guide, np.full_like(guide, 0.01))
    assert np.abs(found - values).max() < 0.6
    guide[5:8, 5:8] = np.nan
    assert (smooth(noisy, weight, guide, np.full_like(guide, 0.01))[5:8, 5:8] == 0).all()
