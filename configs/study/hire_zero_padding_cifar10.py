"""Hire-MLP whose last region is completed by zeros in place of the first tokens."""

_base_ = "./hire_cifar10.py"

model = dict(backbone=dict(region_padding="zero"))
