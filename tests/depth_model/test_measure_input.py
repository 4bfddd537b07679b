"""The measurement of the input side."""

import pytest

from depth_model.errors import InputError
from depth_model.measure_input import Config, main


def test_it_measures_both_in_one_run_and_writes_nothing(scenes, tmp_path, capsys):
    config = Config(out=tmp_path / "run", preset="tiny", scenes=(scenes,), lower_bound=28, steps=1, turns=2)
    assert 0 < main(config) < 10
    assert "2 steps each, in 2 turns, batches of 2" in capsys.readouterr().out and not config.out.exists()
    with pytest.raises(InputError, match="nothing to read"):
        main(Config(out=tmp_path, preset="tiny"))
