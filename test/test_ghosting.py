import json

import pytest

from flowodom.ghosting import LADDER, accumulate, clip, study, table, write


@pytest.fixture(scope="module")
def outcomes():
    return study(seeds=(1,), frames=13, ladder=LADDER[:1])


def test_exact_flow_takes_most_of_the_ghosts_out(outcomes):
    (exact,) = outcomes
    assert exact.frames == [0, 3, 6, 9, 12]
    assert exact.static_movers > 0.02
    assert exact.aware_movers < 0.3 * exact.static_movers
    assert exact.aware_rest < 0.005
    assert exact.factor > 2
    assert 0.02 < exact.movers < 0.5
    assert 0.9 < exact.apd_movers <= exact.apd <= 1


def test_what_stands_is_left_alone_by_a_real_flow():
    steps = clip(1, 10, (160, 120))
    found = accumulate(LADDER[2], steps)
    assert found["aware_rest"][-1] < 0.02
    assert found["aware"][-1] < 1.2 * found["static"][-1]


def test_the_single_image_field_tells_the_depth_of_movers_too():
    (rung,) = [rung for rung in LADDER if rung.depth == "field"]
    found = accumulate(rung, clip(1, 7, (160, 120)))
    assert found["frame"] == [0, 3, 6]
    assert found["movers"][-1] > 0.02
    assert found["static"][-1] < 1.0


def test_depth_on_a_coarser_grid_is_put_where_it_was_seen():
    (rung,) = [rung for rung in LADDER if rung.depth == "filter"]
    found = accumulate(rung, clip(1, 13, (160, 120)))
    assert found["frame"] == [3, 6, 9, 12]
    assert found["aware_rest"][-1] < 1.2


def test_results_are_written(outcomes, tmp_path):
    files = write(outcomes, tmp_path / "deep")
    assert [path.name for path in files] == ["table.md", "ghosting.json", "ghosting.svg"]
    assert table(outcomes).count("\n") == 2
    assert json.loads(files[1].read_text())[0]["factor"] == outcomes[0].factor
    assert "<svg" in files[2].read_text()
