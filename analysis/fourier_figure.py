"""The figure of `python -m analysis.fourier`: curves of each network's blocks, and two measures against depth."""
from analysis.chart import COLOURS, Curve, Panel, between, figure

FIRST, LAST = '#fcd34d', '#4c1d95'  # colours of the first and of the last block
AMPLITUDE = 'change of log amplitude from frequency 0'


def fourier_figure(networks):
    """Return a PIL image of what fourier.json says of its networks."""
    curves = [curves_of(network) for network in networks]
    everyone = tuple(curve for of_network in curves for curve in of_network)
    panels = [Panel(network['legend'], AMPLITUDE, 'frequency (in units of pi)', of_network,
                    span=(FIRST, LAST, 'first block', 'last'), room_for=everyone)
              for network, of_network in zip(networks, curves)]
    panels.append(against_depth(networks, 'High frequencies by depth', f'{AMPLITUDE} to the highest one',
                                lambda block: block['relative_log_amplitude'][-1]))
    panels.append(against_depth(networks, 'Variance of the maps by depth',
                                'variance over positions, mean over channels',
                                lambda block: block['variance']))
    note = 'Shaded: where a map has fewer positions than the one before it.'
    return figure(panels, columns=2 if len(networks) == 2 else 3, note=note)


def curves_of(network):
    """A curve for each block of a network but the last one, coloured by depth."""
    blocks = network['blocks']
    shown = blocks[:-1] or blocks
    curves = []
    for block in shown:
        points = list(zip(block['frequency'], block['relative_log_amplitude']))
        curves.append(Curve(points, between(FIRST, LAST, block['depth']), marked=len(points) == 1))
    return curves


def against_depth(networks, title, about, value):
    """A panel with a curve for each network. value: function of a block."""
    curves = []
    bands = []
    for place, network in enumerate(networks):
        points = [(block['depth'], value(block)) for block in network['blocks']]
        curves.append(Curve(points, COLOURS[place % len(COLOURS)], network['legend']))
        bands += downsampling(network['blocks'])
    return Panel(title, about, 'depth (first block to last)', curves, bands=tuple(dict.fromkeys(bands)))


def downsampling(blocks):
    """The stretches of depth (from, to) in which the number of positions becomes smaller."""
    pairs = zip(blocks, blocks[1:])
    return [(one['depth'], other['depth']) for one, other in pairs
            if other['grid'][0] * other['grid'][1] < one['grid'][0] * one['grid'][1]]
