"""The keyframe window against points and poses that are known exactly."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.registration.window import KeyframeWindow

NONE = torch.zeros(0, dtype=torch.float64)


@dataclass
class Walk:
    """A window fed with exact observations of a static cloud, from poses that are a little wrong."""

    window: KeyframeWindow
    points: Tensor  # (N, 3) in the first camera
    which: Tensor  # (M,) cloud index of each active point
    true: list[Tensor]  # poses of all keyframes so far

    def observe(self, index, pose):
        camera = self.window.camera
        seen = se3.act(se3.inverse(pose), self.points[index])
        return camera.project(seen), 1 / seen[:, 2], camera.visible(seen, border=3)

    def add(self, pose, guess, *, depth, fresh=0):
        """Adds a keyframe, at the guessed pose, that follows all active points and starts ``fresh`` new ones."""
        camera = self.window.camera
        variance = 0.002**2 if depth else torch.inf
        pixels, rho, observed = self.observe(self.which, pose)
        if not depth:
            rho = torch.full_like(rho, torch.nan)
        every = torch.arange(len(self.points))
        _, _, visible = self.observe(every, pose)
        new = every[visible & ~torch.isin(every, self.which)][:fresh]
        new_pixels, new_rho, _ = self.observe(new, pose)
        self.window.add(
            guess,
            observed=observed,
            pixels=pixels,
            noise=alike(pixels),
            places=pixels,
            seen_rho=rho,
            seen_variance=torch.full_like(rho, variance),
            fresh=new_pixels,
            fresh_places=new_pixels,
            fresh_rho=new_rho if depth else torch.full_like(new_rho, torch.nan),
            fresh_variance=torch.full_like(new_rho, variance),
        )
        self.true.append(pose)
        # What the window still follows is told by where it sees it: nothing of its inside is asked.
        candidates, _, _ = self.observe(every, pose)
        distance = torch.cdist(self.window.places, candidates)
        distance[:, ~visible] = torch.inf
        self.which = distance.argmin(1)
        assert camera.contains(self.window.places).all()


def alike(pixels):
    """Covariances of pixels (N, 2) that are all as noisy as each other, whatever the direction."""
    return 0.3**2 * torch.eye(2, dtype=torch.float64).expand(len(pixels), 2, 2)


def path(k, step=(0.12, -0.03, 0.05), turn=(0.01, 0.02, -0.01)):
    return se3.exp(k * torch.tensor([*step, *turn], dtype=torch.float64))


def nudge(seed, size=0.01):
    return se3.exp(size * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.fixture
def walk(camera, scatter):
    """Returns a walk past ``count`` keyframes; all guesses but the first are wrong by ``size``."""

    def make(count, *, metric, window=7, fresh=20, size=0.01, optimise=True):
        walk = Walk(
            KeyframeWindow(camera, size=window, metric=metric),
            scatter(300, seed=3),
            torch.zeros(0, dtype=torch.long),
            [],
        )
        # The exact guesses fix the scale of a single camera.
        for k in range(count):
            walk.add(
                path(k),
                path(k) @ nudge(k, 0.0 if k == 0 else size),
                depth=metric,
                fresh=150 if k == 0 else fresh,
            )
        if optimise:
            walk.window.optimise(max_iterations=60)
        return walk

    return make


def inverse_depths(walk):
    """Returns the inverse depths of the active points as the newest keyframe sees them, the true ones beside them."""
    nowhere = torch.zeros(len(walk.which), 2, dtype=torch.float64)
    m = walk.window.matches(nowhere, 0.3, nowhere[:, 0])
    found = 1 / (m.direction / m.rho[:, None] + m.offset)[:, 2]
    _, true, _ = walk.observe(walk.which, walk.true[-1])
    return found, true


def test_poses_and_depths_are_recovered_with_depth(walk):
    w = walk(5, metric=True)
    for found, true in zip(w.window.poses, w.true, strict=True):
        assert se3.log(se3.inverse(true) @ found).abs().max() < 1e-5
    found, true = inverse_depths(w)
    torch.testing.assert_close(found, true, atol=1e-5, rtol=1e-5)


def test_a_single_camera_recovers_them_up_to_scale_and_keeps_the_scale(walk):
    w = walk(5, metric=False, size=0.004, optimise=False)
    before = (w.window.poses[2][:3, 3] - w.window.poses[0][:3, 3]).norm()
    w.window.optimise(max_iterations=100)
    after = (w.window.poses[2][:3, 3] - w.window.poses[0][:3, 3]).norm()
    assert float(after) == pytest.approx(float(before), rel=1e-6)
    factor = after / w.true[2][:3, 3].norm()
    for found, true in zip(w.window.poses, w.true, strict=True):
        expected = true.clone()
        expected[:3, 3] *= factor
        error = se3.log(se3.inverse(expected) @ found)
        assert error[3:].norm() < 2e-4
        assert error[:3].norm() < 1e-3
    found, true = inverse_depths(w)
    seen_before = torch.isin(w.which, w.which[:100])
    torch.testing.assert_close((found * factor)[seen_before][:100], true[seen_before][:100], atol=3e-3, rtol=1e-2)


def test_unknown_depths_are_triangulated(walk):
    w = walk(4, metric=False, size=0.0, fresh=0)
    found, true = inverse_depths(w)
    torch.testing.assert_close(found, true, atol=1e-3, rtol=5e-3)


def test_a_full_window_drops_the_oldest_and_loses_no_point_that_another_saw(walk):
    w = walk(9, metric=True, window=4, size=0.0, optimise=False)
    assert len(w.window.poses) == 4
    for found, true in zip(w.window.poses, w.true[-4:], strict=True):
        torch.testing.assert_close(found, true)
    # Points of keyframes that left now live on rays of later ones, and are where they were.
    found, true = inverse_depths(w)
    torch.testing.assert_close(found, true, atol=1e-9, rtol=1e-9)
    assert len(found) > 60
    pixels, _, _ = w.observe(w.which, w.true[-1])
    torch.testing.assert_close(w.window.places, pixels, atol=1e-9, rtol=0)


def test_a_window_that_goes_on_stays_exact(walk, camera):
    w = walk(3, metric=True, window=4)
    for k in range(3, 9):
        w.add(path(k), path(k) @ nudge(k), depth=True, fresh=30)
        w.window.optimise(max_iterations=40)
    for found, true in zip(w.window.poses, w.true[-4:], strict=True):
        assert se3.log(se3.inverse(true) @ found).abs().max() < 1e-4


def test_the_oldest_pose_stays_fixed(walk):
    w = walk(4, metric=True, optimise=False)
    oldest = w.window.poses[0].clone()
    w.window.optimise(max_iterations=20)
    torch.testing.assert_close(w.window.poses[0], oldest, rtol=0, atol=0)


def test_the_unit_of_a_single_camera_stays_where_it_comes_back_to_its_first_place(walk):
    w = walk(2, metric=False, size=0.0)
    for k, place in enumerate((0.03, 2.0, 3.0)):
        w.add(path(place), path(place) @ nudge(k), depth=False, fresh=20)
    w.window.optimise(max_iterations=60)
    assert w.window.poses[-1][:3, 3].norm() / path(3.0)[:3, 3].norm() == pytest.approx(1.0, rel=0.01)


def test_points_that_got_behind_the_camera_do_not_cost_the_unit(walk):
    w = walk(2, metric=False, size=0.0)
    for k, place in enumerate((0.03, 2.0, 3.0)):
        w.add(path(place), path(place) @ nudge(k), depth=False, fresh=20)
    # As where a shutter's shear has moved the camera past what was taken to be very near.
    w.window._points.rho[:3] = torch.tensor((-1e7, -40.0, -0.5), dtype=torch.float64)
    w.window.optimise(max_iterations=60)
    assert torch.stack(w.window.poses).isfinite().all()
    assert w.window.poses[-1][:3, 3].norm() / path(3.0)[:3, 3].norm() == pytest.approx(1.0, rel=0.05)


def test_outliers_do_not_bend_the_poses(walk):
    w = walk(4, metric=True, size=0.0, optimise=False)
    pose = path(4)
    pixels, rho, observed = w.observe(w.which, pose)
    wild = torch.rand(len(pixels), generator=torch.Generator().manual_seed(9)) < 0.25
    pixels[wild] += 12.0
    w.window.add(
        pose @ nudge(4),
        observed=observed,
        pixels=pixels,
        noise=alike(pixels),
        places=pixels,
        seen_rho=rho,
        seen_variance=torch.full_like(rho, 0.002**2),
        fresh=NONE.reshape(0, 2),
        fresh_places=NONE.reshape(0, 2),
        fresh_rho=NONE,
        fresh_variance=NONE,
    )
    w.window.optimise(max_iterations=60)
    assert se3.log(se3.inverse(pose) @ w.window.poses[-1]).abs().max() < 1e-3
    # And what contradicted it is followed no longer.
    assert len(w.window.active) <= int((observed & ~wild).sum()) + 3


def test_rescaling_multiplies_lengths_about_the_newest_keyframe(walk):
    w = walk(4, metric=False, size=0.0)
    newest = w.window.poses[-1].clone()
    steps = [a[:3, 3] - newest[:3, 3] for a in w.window.poses]
    found, _ = inverse_depths(w)
    w.window.rescale(2.5)
    torch.testing.assert_close(w.window.poses[-1], newest)
    for pose, step in zip(w.window.poses, steps, strict=True):
        torch.testing.assert_close(pose[:3, 3] - newest[:3, 3], 2.5 * step)
    torch.testing.assert_close(inverse_depths(w)[0], found / 2.5)


def test_one_keyframe_needs_no_refinement(walk):
    w = walk(1, metric=True)
    assert len(w.window.poses) == 1
    torch.testing.assert_close(w.window.poses[0], se3.identity())


def test_the_typical_depth_comes_from_points_that_are_known(walk):
    w = walk(1, metric=True)
    _, true = inverse_depths(w)
    assert w.window.typical_rho == pytest.approx(float(true.median()), rel=0.05)
    assert walk(1, metric=False).window.typical_rho == 1.0
