"""What training makes of inputs that nothing can be learned from: a line that names them, or an update that is left out."""

import re

import numpy as np
import pytest
import torch
from lhotse import CutSet
from made_up import make_cuts, settings, spoil, trainer

from kdlib import rnnt
from kdlib.config import LossConfig
from kdlib.cuts import feature_statistics, select_cuts
from kdlib.errors import RecipeError
from kdlib.training.objective import Objective
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_utterance_whose_features_are_no_numbers(value, corpus, tmp_path, caplog):
    """Its update alone is left out, and named; statistics of the features would pass it on to every other."""
    folder, lang, _, dev = corpus
    cuts = make_cuts(tmp_path, "spoilt", 40, 5)
    bad = cuts[3]
    spoil(bad, value)
    with pytest.raises(RecipeError, match="features of spoilt-3 hold nan or infinity, .*: mend its audio, and run stage 2"):
        feature_statistics(cuts)
    config = settings("data.max_duration=0.1", "training.num_epochs=1", "data.curriculum.updates=0",
                      "data.spec_augment.enabled=false")  # batches of one
    training = trainer(config, tmp_path / "exp", (folder, lang, cuts, dev))
    done = training.train()
    assert done["updates"] == 40 and done["bad_updates"] == 1
    assert "gradient is not finite, the update is left out (the features of spoilt-3 hold nan or infinity)" in caplog.text
    assert all(torch.isfinite(p).all() for p in (*training.model.parameters(), *training.average.state.values()))


def test_dev_utterances_whose_features_are_no_numbers_are_named(corpus, tmp_path, caplog):
    """Once in an epoch; nothing is learned from them, so that the training goes on."""
    folder, lang, train, _ = corpus
    dev = make_cuts(tmp_path, "dev", 30, 5)
    spoil(dev[3], np.nan)
    spoil(dev[8], np.inf)
    config = settings("training.num_epochs=1", "training.updates_per_epoch=2", "data.curriculum.updates=0")
    done = trainer(config, tmp_path / "exp", (folder, lang, train, dev)).train()
    assert done["updates"] == 2 and done["bad_updates"] == 0
    said, = (record for record in caplog.records if record.levelname == "WARNING")
    assert re.match("the features of dev-[38], dev-[38] hold nan or infinity, so the dev loss tells nothing: mend their "
                    "audio, and run stage 2 again", said.getMessage())


def test_a_training_that_learns_nothing_ends(corpus, tmp_path):
    folder, lang, _, dev = corpus
    cuts = make_cuts(tmp_path, "spoilt", 30, 5)
    for cut in cuts:
        spoil(cut, np.nan)
    config = settings("data.max_duration=0.1", "training.num_epochs=1", "data.curriculum.updates=0")
    with pytest.raises(RecipeError, match="20 updates in a row had gradients that are not finite: lower .* or check the f"):
        trainer(config, tmp_path / "exp", (folder, lang, cuts, dev)).train()


@pytest.mark.parametrize("modified", [True, False])
def test_a_transcript_with_the_blank_in_it(corpus, tmp_path, modified):
    """It is no label, and the lattice refuses it; as text it is what a decoder without care may have written."""
    _, lang, train, _ = corpus
    cut = make_cuts(tmp_path, "blank", 1, 4)[0]
    cut.supervisions[0].text = "A <blk>"
    kept, skipped = select_cuts(CutSet.from_cuts([*list(train)[:2], cut]), lang, settings().data, modified)
    assert len(kept) == 2 and skipped == {"the blank, which is no label, in its transcript": ["blank-0"]}


def test_a_backend_that_is_not_there_is_missed_before_training(monkeypatch):
    monkeypatch.setattr(rnnt.k2_backend, "load", lambda: (None, "No module named 'k2'"))
    model = Transducer(settings().model, 9)
    with pytest.raises(RecipeError, match="the backend 'k2' was asked for, but k2 cannot be imported"):
        Objective(model, LossConfig(rnnt_backend="k2"))
    Objective(model, LossConfig(rnnt_backend="auto"))
