"""Hire-MLP without inner-region rearrangement: a region is one token, and a shift does nothing."""

_base_ = "./hire_cifar10.py"

model = dict(backbone=dict(arch=dict(region_sizes=(1, 1, 1, 1))))
