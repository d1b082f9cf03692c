import cv2
import numpy as np

from flowodom.flow.features import match


def picture():
    noise = np.random.default_rng(3).integers(0, 255, (60, 80)).astype(np.uint8)
    return cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)


def test_most_features_are_found_where_a_large_turn_took_them():
    image = picture()
    turn = cv2.getRotationMatrix2D((150.0, 130.0), 40.0, 1.1)
    turned = cv2.warpAffine(image, turn, (320, 240))
    before, now = match(image, turned)
    expected = before.numpy() @ turn[:, :2].T + turn[:, 2]
    right = np.linalg.norm(expected - now.numpy(), axis=1) < 3
    assert before.shape == now.shape
    assert right.sum() > 100
    assert right.mean() > 0.5


def test_an_image_without_features_has_no_matches():
    before, now = match(picture(), np.full((240, 320), 90, dtype=np.uint8))
    assert before.shape == now.shape == (0, 2)
