"""The figure of `python -m analysis.interaction`: a curve of the strength by order for each network."""
from analysis.chart import COLOURS, Curve, Panel, figure
from common.words import counted


def interaction_figure(content):
    """Return a PIL image of what interaction.json says."""
    rows, columns = content['grid']
    shares = [order / (rows * columns - 2) for order in content['orders']]
    curves = []
    for place, network in enumerate(content['networks']):
        points = list(zip(shares, network['strength']))
        colour = COLOURS[place % len(COLOURS)]
        curves.append(Curve(points, colour, network['legend'], network['standard_error']))
    panel = Panel('Interactions of two cells by order', 'strength J(m); its mean over orders is 1',
                  'order m (share of all other cells that are in the context)', curves)
    number = min(len(network['images']) for network in content['networks'])
    note = (f'{rows} x {columns} cells, {counted(content["pairs"], "pair")} and '
            f'{counted(content["contexts"], "context")} an order, {counted(number, "image")}.\n'
            'Bars: standard error over images.')
    return figure([panel], note=note)
