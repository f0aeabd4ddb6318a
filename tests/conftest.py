"""What all tests share."""

import torch

torch.set_num_threads(1)  # the tests' matrices are small: threads only wait for each other
