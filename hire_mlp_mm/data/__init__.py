"""Understand the files of a data set, and check them: pure functions, which no host is needed for.

`Report` is what a check gives. The guarded data sets of a run (`engine.guarded`) and the command
`hire-mlp data` ask the same functions, so that no rule stands twice.
"""
