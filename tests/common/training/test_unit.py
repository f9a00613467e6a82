"""Numbers of rounds in words, as epochs and as iterations."""
from common.training.unit import Unit


def test_epochs_are_told_as_they_are_counted():
    unit = Unit()
    assert unit.number(3) == 3
    assert unit.at(3) == unit.span(3) == 'epoch 3'
    assert unit.of(3, 10) == 'epoch 3/10'
    assert (unit.length(1), unit.length(2)) == ('1 epoch', '2 epochs')
    assert unit.flag(3) == '--epochs=3'


def test_iterations_are_told_by_their_number():
    unit = Unit('iteration', 'iterations', 1600)
    assert unit.number(3) == 4800
    assert unit.at(3) == 'iteration 4,800'
    assert unit.span(3) == 'iterations 3,201 to 4,800'
    assert unit.of(3, 10) == 'iteration 4,800/16,000'
    assert unit.length(10) == '16,000 iterations'
    assert unit.flag(10) == '--iterations=16000'
