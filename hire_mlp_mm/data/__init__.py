"""Understand the files of a data set, and check them: pure functions, which no host is needed for.

Understanding, for the command `hire-mlp data`: `read_layout(folder)` gives a `Layout`.

    read.py           chooses the format of a folder
    layout.py         describes a data set: its task, its classes, its splits
    tree.py           lists a folder once, and says what names mean (splits, images, masks)
    splits.py         completes the splits: lists, a seeded share, what two splits have in common
    coco_folder.py    reads COCO json
    voc.py, yolo.py   read Pascal VOC XML and YOLO txt, and convert them by coco_content.py
    segmentation.py   reads images beside masks: mask_files.py scans and writes masks, labelling.py
                      decides what their values mean
    class_folders.py  reads a folder per class
    class_names.py    reads the names, colours and numbers of classes from text files

Checks, which the data sets of a run (`engine.guarded`) and `hire-mlp data` both ask, so that no
rule stands twice; each gives a `Report`.

    report.py         holds what was found, and writes counts and lists
    coco/             checks a COCO file
    masks.py          checks masks; labels.py says what their values mean to MMSegmentation
    folders.py        checks a folder per class, or a list of images and labels
    listing.py        lists files as the hosts do, and finds those that are missing
    palette.py        chooses the colours of classes in pictures
"""
