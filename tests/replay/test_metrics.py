"""Continual metrics against matrices worked out by hand."""

import pytest
import torch
from torch import nn

from data import ImageSet
from replay.metrics import (
    accuracies,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    summary,
)

ACC = [[90.0, 10.0, 0.0], [60.0, 80.0, 20.0], [70.0, 50.0, 95.0]]
INITIAL = [10.0, 12.0, 8.0]


def test_metrics_of_a_matrix_of_three_tasks():
    assert average_accuracy(ACC) == pytest.approx((70 + 50 + 95) / 3)
    assert average_incremental_accuracy(ACC) == pytest.approx((90 + (60 + 80) / 2 + (70 + 50 + 95) / 3) / 3)
    assert forgetting(ACC) == pytest.approx(((90 - 70) + (80 - 50)) / 2)
    assert backward_transfer(ACC) == pytest.approx(((70 - 90) + (50 - 80)) / 2)
    assert forward_transfer(ACC, INITIAL) == pytest.approx(((10 - 12) + (20 - 8)) / 2)


def test_forgetting_takes_the_best_earlier_row_and_may_be_negative():
    peak_later = [[50.0, 0.0, 0.0], [90.0, 80.0, 0.0], [60.0, 85.0, 95.0]]
    assert forgetting(peak_later) == pytest.approx(((90 - 60) + (80 - 85)) / 2)
    assert backward_transfer(peak_later) == pytest.approx(((60 - 50) + (85 - 80)) / 2)
    assert forgetting([[50.0, 0.0], [70.0, 90.0]]) == pytest.approx(-20)


def test_what_is_learnt_at_once_has_an_average_alone():
    found = summary([[90.0, 80.0, 70.0]], INITIAL)
    assert found.pop("average_accuracy") == pytest.approx(80)
    assert set(found.values()) == {None}


def test_one_task_has_no_transfer():
    assert forgetting([[90.0]]) is None
    assert backward_transfer([[90.0]]) is None
    assert forward_transfer([[90.0]], [10.0]) is None
    assert average_incremental_accuracy([[90.0]]) == 90


class Fixed(nn.Module):
    """Gives the logits of a table, whichever row the first pixel names."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits[((images[:, 0, 0, 0] + 1) * 127.5).round().long()]


def test_accuracy_by_class_and_by_task():
    # classes {2, 0} are task 0, {1, 3} task 1
    logits = [[1.0, 9.0, 2.0, 0.0], [5.0, 1.0, 2.0, 3.0], [0.0, 1.0, 9.0, 2.0], [9.0, 0.0, 1.0, 2.0]]
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    found = accuracies(Fixed(logits), ImageSet(images, torch.tensor([2, 0, 1, 3])), [[2, 0], [1, 3]], 4)
    assert found["class-il"] == [
        50.0,
        0.0,
    ]  # image 0 goes to class 1 of the other task, image 1 is right, 2 and 3 are not
    assert found["task-il"] == [100.0, 50.0]  # 2 of {2, 0}; 0; 3 of {1, 3} for a 1; 3
