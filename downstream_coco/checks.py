"""What the checks of an annotation file find of its boxes and masks, and when the file is refused for it."""
from dataclasses import dataclass

import numpy as np

from downstream_coco.masks import ABSENT, GOOD, MASK_FAULTS
from downstream_coco.remarks import Remarks

# COCO's polygons lie within a pixel of their boxes. Boxes and masks that were drawn apart, or masks that a
# network made at a low resolution, lie further apart: a twentieth of the box is common, a tenth is not.
ROUNDING = 2.0  # pixels
LOOSE = 0.1  # share of the box's width or height
EXPECTED_MASK = ('A segmentation is a list of polygons in pixels, [[x1, y1, x2, y2, x3, y3, ...], ...], or '
                 'the run lengths of the whole image, {"size": [height, width], "counts": ...}. For example: '
                 '"segmentation": [[10, 10, 50, 10, 50, 40]]')
EXPECTED_BOX = 'A box is [x, y, width, height] in pixels, x and y of its top left corner'


def corners(boxes, sizes):
    """x1 y1 x2 y2, (N, 4), of boxes x, y, width, height, (N, 4), cut at the borders of their images.

    sizes: (N, 2), height and width of the images.
    """
    ends = boxes[:, :2] + boxes[:, 2:]
    return np.concatenate([boxes[:, :2], ends], 1).clip(0, np.tile(sizes[:, ::-1], 2))


def masks_fill_boxes(boxes, extents, sizes):
    """Whether each mask fills its box, (N,) bool, apart from ROUNDING and LOOSE. False without a mask.

    boxes: (N, 4), x, y, width, height. extents: (N, 4), x1 y1 x2 y2 of the masks. sizes: as of corners.
    """
    inside = corners(boxes, sizes)
    distances = np.abs(inside - extents.clip(0, np.tile(sizes[:, ::-1], 2)))
    allowed = np.maximum(ROUNDING, LOOSE * (inside[:, 2:] - inside[:, :2]))
    return (distances <= np.tile(allowed, 2)).all(1) & (boxes[:, 2:] > 0).all(1)


def lie_inside(boxes, sizes):
    """Whether each box has area and lies in its image, (N,) bool, apart from ROUNDING. The arguments are
    those of corners.
    """
    has_area = (boxes[:, 2:] > 0).all(1)
    begins_inside = (boxes[:, :2] >= -ROUNDING).all(1)
    ends_inside = (boxes[:, :2] + boxes[:, 2:] <= sizes[:, ::-1] + ROUNDING).all(1)
    return has_area & begins_inside & ends_inside


def other_form(boxes, least, fits):
    """The form, as text, in which boxes (N, 4) are probably given if it is not x, y, width, height; None if unknown.

    fits: called with boxes (N, 4), converted from a form; returns which of them are right, (N,) bool.
    least: the share of them that must be right.
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    forms = {'corners, x1, y1, x2, y2': np.concatenate([first, second - first], 1),
             'x and y of the centre, width, height': np.concatenate([first - second / 2, second], 1)}
    shares = {name: fits(converted).mean() for name, converted in forms.items()}
    name = max(shares, key=shares.get)
    return name if shares[name] >= least else None


@dataclass(frozen=True)
class Checks:
    """What is found of the N annotations of a file.

    boxes: (N, 4), x, y, width, height as in the file; NaN where a value is enormous or NaN.
    sizes: (N, 2), height and width of the images.
    faults: (N,), places in MASK_FAULTS, or ABSENT. extents: (N, 4), x1 y1 x2 y2 of the masks, NaN without one.
    has_area: (N,) bool, whether the box has area in its image.
    remarks: a Remarks, of what is used although COCO's format has it otherwise.
    """
    annotations: list
    boxes: np.ndarray
    sizes: np.ndarray
    faults: np.ndarray
    extents: np.ndarray
    has_area: np.ndarray
    remarks: Remarks

    @property
    def given(self):
        """Whether a segmentation is given, good or bad, (N,) bool."""
        return self.faults != ABSENT

    @property
    def both(self):
        """Whether an annotation has a box with area and a mask, (N,) bool."""
        return self.has_area & (self.faults == GOOD)

    @property
    def contradicts(self):
        """Whether there are a mask and a box, and the mask does not fill the box, (N,) bool."""
        return self.both & ~masks_fill_boxes(self.boxes, self.extents, self.sizes)

    def beyond(self, margin):
        """Whether a box with area reaches beyond its image by more than a margin, (N,) bool.

        margin: pixels, a number or (N, 2) for x and y.
        """
        ends = self.boxes[:, :2] + self.boxes[:, 2:]
        reach = np.maximum(-self.boxes[:, :2], ends - self.sizes[:, ::-1])
        return self.has_area & (reach > margin).any(1)

    def judge(self, masks):
        """Sentences on what is wrong with some annotations, or is used although COCO's format has it otherwise.

        masks: whether masks are used; None if that is not decided.

        Raises ValueError where most masks or boxes are wrong. They are of another form then, and the few that
        pass by chance are not what is meant.
        """
        sentences = self.judge_masks(masks)
        self.refuse_boxes(masks)
        disagree = (f'masks reach elsewhere than their boxes, by more than {ROUNDING:g} pixels and '
                    f'{100 * LOOSE:g} % of the box')
        for is_wrong, what in ((self.contradicts, disagree),
                               (self.beyond(ROUNDING),
                                'boxes reach beyond their images: they are cut at the border')):
            if is_wrong.any():
                sentences.append(f'{self.remarks.path}: {is_wrong.sum():,} {what}; for example '
                                 f'{self.example(is_wrong)}')
        return sentences

    def judge_masks(self, masks):
        """The sentences on masks alone; the argument and what is raised are those of judge."""
        is_bad = self.faults > GOOD
        bad = Remarks(self.remarks.path, self.remarks.names)
        for number in np.flatnonzero(is_bad):
            bad.add(MASK_FAULTS[self.faults[number]], self.annotations[number])
        sentence = (f'{self.remarks.path}: {is_bad.sum():,} of {self.given.sum():,} segmentations are no '
                    f'masks of their images: {bad}')
        if masks is False:
            return []
        if 2 * is_bad.sum() > self.given.sum():
            raise ValueError(f'{sentence}. {EXPECTED_MASK}. --heads=box trains on the boxes alone')
        sentences = self.remarks.sentences()
        if is_bad.any():
            sentences.append(sentence)
        return sentences

    def refuse_boxes(self, masks):
        """Raises ValueError where most boxes are wrong. masks: as of judge."""
        self.refuse_shares()
        both, wrong = self.both, self.contradicts
        if 2 * wrong.sum() > both.sum():
            form = other_form(self.boxes[both], 0.5,
                              lambda boxes: masks_fill_boxes(boxes, self.extents[both], self.sizes[both]))
            if form or masks is not False:
                self.refuse(wrong, both.sum(), 'lie elsewhere than the masks of their objects', form,
                            '. Correct the masks or the boxes; --heads=box trains on the boxes alone')
        beyond = self.beyond(ROUNDING)
        if 2 * beyond.sum() > len(beyond):
            self.refuse(beyond, len(beyond), 'reach beyond their images', self.form_that_lies_inside(0.9),
                        '. Give those in the images, cut at the border')
        # If most objects lie in the left upper quarter of their images, few boxes reach beyond them although
        # all are corners. But one in ten reaches far beyond, and as corners all of them fit.
        far = self.beyond(0.1 * self.sizes[:, ::-1])
        if 10 * far.sum() > len(far):
            form = self.form_that_lies_inside(0.99)
            if form:
                self.refuse(far, len(far), 'reach far beyond their images', form)
        if 0 < 2 * self.has_area.sum() < len(self.has_area):
            self.refuse(~self.has_area, len(self.has_area), 'have no area in their images')

    def refuse_shares(self):
        """Raises ValueError where the numbers of most boxes are shares of their images."""
        in_unit_range = (self.boxes >= 0).all(1) & (self.boxes <= 1).all(1) & (self.boxes[:, 2:] > 0).all(1)
        if 2 * in_unit_range.sum() > len(in_unit_range):
            self.refuse(in_unit_range, len(in_unit_range), 'have no number above 1',
                        "shares of the image's width and height")

    def form_that_lies_inside(self, least):
        """The other form of boxes in which at least this share of them lies in the images, as text; None if
        there is none.
        """
        is_finite = np.isfinite(self.boxes).all(1)
        if not is_finite.any():
            return None
        sizes = self.sizes[is_finite]
        return other_form(self.boxes[is_finite], least, lambda boxes: lie_inside(boxes, sizes))

    def refuse(self, is_wrong, total, what, form=None, remedy=''):
        """Raise ValueError.

        is_wrong: (N,) bool, the boxes that are wrong. total: of how many. what: is wrong with them, in words.
        form: that they seem to be of, as text. remedy: what to do where no form is known, from '. ' on.
        """
        if form:
            remedy = f'; these look like {form}. Convert them'
        raise ValueError(f'{self.remarks.path}: {is_wrong.sum():,} of {total:,} boxes {what}; for example '
                         f'{self.example(is_wrong)}. {EXPECTED_BOX}{remedy}')

    def example(self, chosen):
        """The first of the chosen annotations, (N,) bool, and its box, as text."""
        number = int(np.flatnonzero(chosen)[0])
        height, width = self.sizes[number]
        box = ', '.join(f'{value:g}' for value in self.boxes[number])
        return (f'{self.remarks.example(self.annotations[number])}, with the box [{box}] in {width} x '
                f'{height} pixels')
