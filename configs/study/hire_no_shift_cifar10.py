"""Hire-MLP without cross-region rearrangement."""

_base_ = "./hire_cifar10.py"

model = dict(backbone=dict(arch=dict(shift_steps=(0, 0, 0, 0))))
