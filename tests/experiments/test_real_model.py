"""One small cell on a real model and public rows: fetched, cut, tuned, scored, resumed."""

import os

import pytest

from experiments.real.cells import Lab, cell_of

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not os.environ.get("CC_TUNING_DATA"), reason="CC_TUNING_DATA names no folder of public rows")
def test_a_pack_on_smollm2(tmp_path):
    text = {"labels": 16, "sentences": 16}
    setting = {"epochs": 1, "batch": 8, "pack_batch": 16, "pack_passes": 2, "pack_rate": 1e-4, "text": text}
    told = {"base": "smollm2-135m", "world": "sib200-tiny", "recipe": "pack", "setting": setting}
    record = Lab(tmp_path).run(cell_of(told))
    aligned = record["noted"][0]["aligned"]
    assert all(one["after"]["error"] < one["before"]["error"] for one in aligned.values())
    assert set(record["right"]["test"]) == {"en", "fr", "sw"}
    assert Lab(tmp_path).run(cell_of(told)) == record
