"""What is said of the annotations of a file, counted by kind."""
from collections import Counter


class Remarks:
    """Counts annotations by kind of remark, and keeps the first annotation of each kind as an example.

    path: of the annotation file. names: {image id: file name}.
    """

    def __init__(self, path, names):
        self.path = path
        self.names = names
        self.counts = Counter()
        self.examples = {}

    def add(self, kind, annotation):
        """Count an annotation. kind: the remark, as it reads after a number."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, self.example(annotation))

    def example(self, annotation):
        """The words that name an annotation."""
        return f'annotation {annotation["id"]} of {self.names[annotation["image_id"]]}'

    def sentences(self):
        """A sentence for each kind."""
        return [f'{self.path}: {count:,} {kind}; for example {self.examples[kind]}'
                for kind, count in self.counts.items()]

    def __str__(self):
        return ', '.join(f'{count:,} {kind} ({self.examples[kind]})' for kind, count in self.counts.items())
