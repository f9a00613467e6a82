"""The figure of docs/transfer.md: a point for each seed, and a line at the mean."""
import statistics


def draw(panels, measures, labels, path):
    """Write the figure as SVG, if there is anything to draw.

    panels: {title: {(start, measure): accuracies in percent}}. measures: {measure: its title}, in order. labels: {start: its
    label}.
    """
    if not panels:
        return
    import matplotlib
    matplotlib.use('svg')
    from matplotlib import pyplot
    with pyplot.rc_context({'svg.hashsalt': 'evidence', 'svg.fonttype': 'none'}):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(8 * len(panels), 3.4), squeeze=False)
        for (title, accuracies), axis in zip(panels.items(), axes[0]):
            draw_panel(axis, accuracies, measures, labels)
            axis.set_title(title)
        figure.tight_layout()
        figure.savefig(path, metadata={'Date': None})
        pyplot.close(figure)


def draw_panel(axis, accuracies, measures, labels):
    starts = list(dict.fromkeys(start for start, _ in accuracies))
    for number, start in enumerate(starts):
        colour = f'C{number}'
        for place, measure in enumerate(measures):
            values = accuracies.get((start, measure), ())
            if not values:
                continue
            x = place + 0.8 * (number + 0.5) / len(starts) - 0.4
            axis.plot([x] * len(values), values, 'o', color=colour, markersize=3)
            axis.plot([x - 0.06, x + 0.06], [statistics.mean(values)] * 2, color=colour)
        axis.plot([], [], 'o-', color=colour, markersize=3, label=labels[start])
    axis.set_xticks(range(len(measures)), measures.values())
    axis.set_ylabel('top-1 accuracy (%)')
    axis.grid(axis='y', alpha=0.3)
    axis.legend(fontsize=7)
