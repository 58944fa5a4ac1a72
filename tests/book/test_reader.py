"""The reader of the Bible, with few words read."""

import torch

import dropreg
from dropreg.book.reader import SITES, UNITS, WORDS, Reader, read


def test_it_learns_and_the_same_seed_reads_the_same():
    before, after = read(epochs=0), read(epochs=1)

    def loss(reading):
        reading.model.eval()
        with torch.no_grad():
            logits = reading.model(reading.inputs[0])
        reading.model.train()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), reading.targets[0].flatten())

    assert loss(after) < loss(before) - 0.5
    again = read(epochs=0)
    assert torch.equal(again.model.out.weight, before.model.out.weight)
    assert torch.equal(again.inputs[0, :, 1:], again.targets[0, :, :-1])


def test_each_of_its_sites_shares_a_mask_over_time():
    words = torch.zeros(2, 5, dtype=torch.long)
    sites = dropreg.find_sites(Reader(), words)
    assert [site.shape for site in sites] == [(2, 5, UNITS)] * SITES
    assert Reader()(words).shape == (2, 5, WORDS)
    assert str(sites).count("over dim 1") == SITES
