"""Hire-MLP that sums its branches, as version 1 of the paper does, in place of the gate."""

_base_ = "./hire_cifar10.py"

model = dict(backbone=dict(type="AblatedHireMLP", without="gate"))
