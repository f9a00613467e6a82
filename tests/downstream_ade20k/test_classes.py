"""Classes: the numbers of values, names and colours, and files of them."""
import numpy as np
import pytest

from downstream_ade20k.classes import ADE20K, IGNORE, STRIP, Classes, ade20k, colour_of, read_classes


def of_lines(folder, *lines, ignored=(255,)):
    path = folder / 'classes.txt'
    path.write_text('\n'.join(lines), 'utf-8')
    return read_classes(path, ignored)


def test_ade20k():
    assert len(ADE20K) == 150 and ADE20K.ids == tuple(range(1, 151)) and ADE20K.ignored == (0, 255)
    known = {1: 'wall', 3: 'sky', 13: 'person', 21: 'car', 128: 'bicycle', 150: 'flag'}
    assert {place: ADE20K.names[place - 1] for place in known} == known
    assert len(set(ADE20K.names)) == 150 and len(set(ADE20K.colours)) == 150
    numbers = ADE20K.numbers(np.uint8([[0, 1, 2], [150, 255, 13]]))
    assert numbers.tolist() == [[IGNORE, 0, 1], [149, IGNORE, 12]] and numbers.dtype == np.int16


def test_more_values_of_ade20k_can_be_ignored():
    without = ade20k((3, 254))
    assert len(without) == 149 and 'sky' not in without.names and without.ignored == (0, 3, 254, 255)
    assert without.numbers(np.uint8([[2, 3, 4]])).tolist() == [[1, IGNORE, 2]]


def test_numbers_of_many_classes():
    ids = range(0, 40_000, 20)
    classes = Classes.of_ids(ids, (255,))
    assert classes.numbers(np.array([[0, 20, 39_980, 255]], np.uint16)).tolist() == [[0, 1, 1999, IGNORE]]
    with pytest.raises(ValueError, match='the value 21, which is neither'):
        classes.numbers(np.array([[20, 21]], np.uint16))


def test_a_checkpoint_holds_all_of_them(tmp_path):
    for classes in (ADE20K, of_lines(tmp_path, '3 tree 1,2,3', '7 sky #ffffff')):
        data = classes.as_data()
        assert Classes.from_data(data) == classes
        assert {type(value) for value in data.values()} == {list}


@pytest.mark.parametrize('lines', [
    ['3 traffic light #0102ff', '7 sky #ffffff'],
    ['# id name colour', '', '3  traffic light\t1 2 255', '7\tsky\t255 255 255'],
    ['\ufeffid,name,r,g,b', '3,traffic light,1,2,255', '7,sky,255,255,255']])
def test_ids_names_and_colours(tmp_path, lines):
    classes = of_lines(tmp_path, *lines)
    assert classes.ids == (3, 7) and classes.names == ('traffic light', 'sky')
    assert classes.colours == ((1, 2, 255), (255, 255, 255))
    assert classes.mask_colours == ((3, (1, 2, 255)), (7, (255, 255, 255)))


@pytest.mark.parametrize('lines', [
    ['background', 'tree'], ['background:0,0,0::', 'tree:1,2,3::'], ['name,r,g,b', 'background, 0, 0, 0', 'tree, 1, 2, 3']])
def test_lines_without_ids_are_numbered(tmp_path, lines):
    classes = of_lines(tmp_path, *lines)
    assert classes.ids == (0, 1) and classes.names == ('background', 'tree')
    with_colours = len(lines) > 2 or ':' in lines[0]
    assert classes.colours == ((0, 0, 0), (1, 2, 3) if with_colours else colour_of(1))
    assert bool(classes.mask_colours) == with_colours


def test_ignored_lines_are_no_classes_but_have_colours(tmp_path):
    classes = of_lines(tmp_path, '0 void 0,0,0', '1 tree 0,255,0', '2 sky 0,0,255', ignored=(0, 255))
    assert classes.names == ('tree', 'sky') and classes.ignored == (0, 255)
    pixels = np.uint8([[[0, 0, 255], [0, 0, 0], [0, 255, 0]]])
    assert classes.ids_of(pixels).tolist() == [[2, 0, 1]]
    assert classes.numbers(classes.ids_of(pixels)).tolist() == [[1, IGNORE, 0]]
    with pytest.raises(ValueError, match='the colour 0, 1, 255, which is not in .*classes.txt: add #0001ff there'):
        classes.ids_of(np.uint8([[[0, 1, 255]]]))
    with pytest.raises(ValueError, match='the colour 255, 255, 255'):
        classes.ids_of(np.uint8([[[255, 255, 255]]]))


@pytest.mark.parametrize('lines, message', [
    (['1 tree', 'sky'], "'sky' has no id, and other lines have"),
    (['1 tree #ff0000', '2 sky'], "'2 sky' has no colour, and other lines have"),
    (['1 tree', '1 sky'], 'the id 1 is given to two'),
    (['1 tree', '2 tree'], 'the name tree is given to two'),
    (['1 tree #ff0000', '2 sky #ff0000'], r'the colour \(255, 0, 0\) is given to two'),
    (['1 tree 256,0,0', '2 sky 0,0,0'], 'value above 255'),
    (['1 tree'], '2 to 4,096 classes, not 1: tree alone'),
    ([], 'not 0'),
    (['1 tree', '255 sky'], r'there is tree alone beside 255 \(sky\), which is ignored. .* --ignore=254$'),
    (['254 tree', '255 sky'], '--ignore=256$'),
    (['70000 tree', '1 sky'], 'the id 70000 is not among the values'),
    (['1\t0.15\t11664\t1172\twall', '2\t0.10\t6046\t612\tbuilding'], 'is no class: a line is a name'),
    (['1 tree #00ff00', '2 sky blue #12345'], 'ends with #12345, which is no colour'),
    (['1 tree', ',,,'], 'is no class')])
def test_files_that_are_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        of_lines(tmp_path, *lines)


def test_each_colour_stands_for_its_own_class_and_all_others_are_refused():
    """Colours that share two of their three values are the ones that could be mistaken for each other."""
    sides = (0, 1, 128, 255)
    colours = [(red, green, blue) for red in sides for green in sides for blue in sides][1:]
    names = tuple(map(str, colours))
    ids = tuple(range(7, 7 + len(colours)))
    classes = Classes(ids, names, tuple(colours), (), tuple(zip(ids, colours)))
    assert classes.ids_of(np.uint8([colours])).tolist() == [list(ids)]
    for colour in ((0, 0, 0), (0, 2, 0), (1, 0, 2), (2, 0, 0)):
        with pytest.raises(ValueError, match='the colour {}, {}, {}, which stands for no class'.format(*colour)):
            classes.ids_of(np.uint8([[colours[0], colour]]))


def test_large_masks_are_looked_up_in_strips(tmp_path):
    classes = of_lines(tmp_path, '3 tree #0102ff', '40000 sky #ffffff')
    is_sky = np.random.default_rng(0).random((300, STRIP // 100)) < 0.5
    pixels = np.where(is_sky[..., None], np.uint8([255, 255, 255]), np.uint8([1, 2, 255]))
    assert np.array_equal(classes.ids_of(pixels), np.where(is_sky, 40_000, 3))
    pixels[-1, -1] = 9, 8, 7
    with pytest.raises(ValueError, match='the colour 9, 8, 7, which'):
        classes.ids_of(pixels)


def test_more_classes_than_can_be_counted_are_refused():
    assert len(Classes.of_ids(range(4096), ())) == 4096
    with pytest.raises(ValueError, match='2 to 4,096 classes, not 4,097'):
        Classes.of_ids(range(4097), ())


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / 'classes.txt'
    path.write_bytes(b'\xff\xfe\xff')
    for wrong in (path, tmp_path / 'none.txt', tmp_path):
        with pytest.raises(ValueError, match='cannot be read'):
            read_classes(wrong, (255,))


def test_a_class_cannot_be_ignored():
    with pytest.raises(ValueError, match='the id 1 is both a class, class 1, and ignored'):
        Classes.of_ids((0, 1, 2), (1,))


def test_colours_of_different_ids_are_far_apart():
    colours = np.array([colour_of(value) for value in range(151)], float)
    distances = np.linalg.norm(colours[:, None] - colours, axis=2) + 1000 * np.eye(len(colours))
    assert distances[:20, :20].min() > 40 and distances.min() > 15
    assert colours[0].tolist() == [0, 0, 0]
