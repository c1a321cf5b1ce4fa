import numpy as np
import pytest

from dppmask_jax.data.sources import classes
from dppmask_jax.errors import InputError


@pytest.mark.parametrize("sign", [1, -1])
def test_the_order_of_classes_is_that_of_numbers_then_of_texts(sign):
    class Text(str):
        def __hash__(self):  # which differs from process to process, and orders a set
            return sign * len(self)

    values = [Text(value) for value in ("10", "1", "001", "01", "2", "02", "002", "1")]
    numbers, names = classes.numbered(values)
    assert names == ("001", "01", "1", "002", "02", "2", "10")
    assert numbers.tolist() == [6, 2, 0, 1, 5, 4, 3, 2]


def test_splits_have_labels_each_for_itself():
    values, val = ["b", "x", "a", "", "c"], np.array([False, True, False, True, False])

    def of(values, names=()):
        return classes.of_splits(values, "set", "row {}".format, val, names)

    train, kept_back = of(values)
    assert train.names == ("a", "b", "c") and train.numbers.tolist() == [1, 0, 2]
    assert kept_back.names == () and kept_back.because == "row 3 has no label"
    train, kept_back = of(["b", "c", "a", "a", "c"], ("c", "d", "b", "a"))
    assert train.names == kept_back.names == ("c", "d", "b", "a")
    assert train.numbers.tolist() == [2, 3, 0] and kept_back.numbers.tolist() == [0, 3]
    train, kept_back = of(["b", "x", "", "a", "c"])
    assert train.because == "row 2 has no label" and not kept_back.names
    assert kept_back.because == "the training images have no labels: row 2 has no label"
    assert [labels.because for labels in of([""] * 5)] == ["set has no labels"] * 2
    with pytest.raises(InputError, match="set: no training image has the label 'x'"):
        of(["b", "x", "a", "a", "c"])
