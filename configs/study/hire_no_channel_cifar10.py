"""Hire-MLP without the channel branch; the gate weighs two."""

_base_ = "./hire_cifar10.py"

model = dict(backbone=dict(type="AblatedHireMLP", without="channel"))
