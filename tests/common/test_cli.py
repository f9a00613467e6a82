"""Options of a command line: what has three answers."""
from dataclasses import dataclass

import pytest

from common.cli import boolean, option, parse, plain_fields


@dataclass(frozen=True)
class Switches:
    graph: bool = option(None, 'capture the step; by the device if not given', 'machine', parse=boolean)
    flip: bool = option(True, 'mirror half of the images', 'data')


@pytest.mark.parametrize(('line', 'graph'), [
    ([], None), (['--graph'], True), (['--graph=True'], True), (['--graph', 'yes'], True), (['--graph=False'], False),
    (['--graph=0'], False), (['--no_graph'], False), (['--graph', '--flip=False'], True),
])
def test_a_boolean_without_a_default_has_three_answers(line, graph):
    assert parse(Switches, 'switches', 'Two switches.', line).graph is graph


def test_it_stays_a_boolean():
    assert plain_fields(Switches()) == {'graph': None, 'flip': True}
    assert plain_fields(Switches(graph=False))['graph'] is False
    with pytest.raises(ValueError, match='graph cannot be 1: capture the step'):
        plain_fields(Switches(graph=1))
    with pytest.raises(SystemExit):
        parse(Switches, 'switches', 'Two switches.', ['--graph=maybe'])
