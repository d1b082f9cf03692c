import csv

import pytest

from flowodom.errors import FlowodomError
from flowodom.track import track
from flowodom.worlds.recording import render_bag


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("bag") / "room.mcap"
    render_bag(path, seed=2, frames=8, size=(160, 120), movers=0)
    return path


def test_points_of_a_static_room_stay_where_they_are(bag, tmp_path):
    path = track(bag, tmp_path, [(60, 60), (100, 70)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["point"] for row in rows} == {"0", "1"}
    assert len(rows) >= 10
    for axis in "xyz":
        values = [float(row[axis]) for row in rows if row["point"] == "1"]
        assert max(values) - min(values) < 0.05


def test_points_outside_the_image_are_refused(bag, tmp_path):
    with pytest.raises(FlowodomError, match="160x120"):
        track(bag, tmp_path, [(200, 10)])
